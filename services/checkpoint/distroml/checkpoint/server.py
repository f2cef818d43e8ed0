"""CheckpointService: message to command to message. No rule lives here."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.api.checkpoint.v1.checkpoint_pb2_grpc import CheckpointServiceServicer
from distroml.checkpoint import requests
from distroml.checkpoint.catalogues import Catalogues
from distroml.checkpoint.domain import reasons
from distroml.checkpoint.domain.commands import BeginSave, Delete, FailSave, Pin, ReportShard
from distroml.checkpoint.domain.state import Catalogue, Checkpoint
from distroml.events import Rejection
from distroml.eventstore.handle import CommandKey
from distroml.manifest import Keys
from distroml.rpc.errors import FailedPrecondition, NotFound


class CheckpointServer(CheckpointServiceServicer):
    """Serves the catalogues.

    Refusals of the domain come as FAILED_PRECONDITION with its reason; wrong fields as INVALID_ARGUMENT, all of
    them; what does not exist as NOT_FOUND.
    """

    def __init__(self, catalogues: Catalogues, *, keep: int) -> None:
        self._catalogues, self._keep = catalogues, keep

    async def BeginSave(self, request: pb.BeginSaveRequest, context: Any) -> pb.BeginSaveResponse:
        """Open a save, or find it open."""
        requests.check_begin(request)
        command = BeginSave(
            at_ms=self._catalogues.now_ms(),
            job=request.job,
            project=request.project,
            generation=request.generation,
            step=request.step,
            world_size=request.world_size,
            keep=request.keep or self._keep,
        )
        state = await self._catalogues.begin(command)
        save = state.open
        if save is None or not state.is_open(request.generation, request.step):
            # Another save was open: that this one is refused was recorded.
            failure = state.failure(request.generation, request.step)
            reason = failure.reason if failure else reasons.SAVE_CLOSED
            raise FailedPrecondition(reason, failure.message if failure else "the save was closed meanwhile")
        return pb.BeginSaveResponse(
            save_id=save.save_id,
            base_manifest_hash=save.base_manifest_hash,
            object_prefix=Keys(request.job).data_of(save.save_id),
        )

    async def ReportShard(self, request: pb.ReportShardRequest, context: Any) -> pb.ReportShardResponse:
        """Record a rank's part; the last one makes the checkpoint."""
        requests.check_shard(request)
        command = ReportShard(
            at_ms=self._catalogues.now_ms(),
            generation=request.generation,
            step=request.step,
            rank=request.rank,
            world_size=request.world_size,
            shard_key=request.shard_key,
            shard_hash=request.shard_hash,
            bytes_written=request.bytes_written,
            bytes_reused=request.bytes_reused,
            seconds=request.seconds,
        )
        state = await self._catalogues.report(request.job, command)
        if (done := state.committed(request.generation, request.step)) is not None:
            return pb.ReportShardResponse(committed=True, manifest_hash=done.manifest_hash)
        if state.open is not None and state.is_open(request.generation, request.step):
            return pb.ReportShardResponse(missing=state.open.missing)
        failure = state.failure(request.generation, request.step)
        reason = failure.reason if failure else reasons.SAVE_CLOSED
        raise FailedPrecondition(reason, failure.message if failure else "the save was closed meanwhile")

    async def ReportSaveFailed(self, request: pb.ReportSaveFailedRequest, context: Any) -> pb.ReportSaveFailedResponse:
        """Close a save for all ranks."""
        requests.check_failed(request)
        command = FailSave(
            at_ms=self._catalogues.now_ms(),
            generation=request.generation,
            step=request.step,
            rank=request.rank,
            reason=reasons.RANK_FAILED,
            message=requests.cut(request.message),
        )
        await self._catalogues.fail(request.job, command)
        return pb.ReportSaveFailedResponse()

    async def GetLatest(self, request: pb.GetLatestRequest, context: Any) -> pb.GetLatestResponse:
        """The newest sound checkpoint."""
        requests.check_job(request.job)
        latest = await self._catalogues.latest(request.job, request.generation, request.max_step)
        return await self._latest(request.job, latest)

    async def ReportCorruption(self, request: pb.ReportCorruptionRequest, context: Any) -> pb.GetLatestResponse:
        """Set a checkpoint aside and name the next best."""
        requests.check_corruption(request)
        with _absent_is_not_found():
            await self._catalogues.corrupt(
                request.job,
                request.manifest_hash,
                request.object_key,
                request.chunk_hash,
                requests.cut(request.message),
            )
        latest = await self._catalogues.latest(request.job, request.generation, 0)
        return await self._latest(request.job, latest)

    async def VerifyCheckpoint(self, request: pb.VerifyCheckpointRequest, context: Any) -> pb.VerifyCheckpointResponse:
        """Read every chunk."""
        requests.check_job(request.job)
        state = await self._catalogues.load(request.job)
        checkpoint = _of_step(state, request.job, request.step)
        verdict = await self._catalogues.verify(request.job, checkpoint)
        return pb.VerifyCheckpointResponse(
            sound=not verdict.damages,
            chunks=verdict.chunks,
            bytes=verdict.bytes,
            damaged=[damage.message for damage in verdict.damages],
        )

    async def ListCheckpoints(self, request: pb.ListCheckpointsRequest, context: Any) -> pb.ListCheckpointsResponse:
        """Newest first, deleted ones of late among them."""
        requests.check_job(request.job)
        before = requests.page_token(request.page_token)
        state = await self._catalogues.load(request.job)
        newest_first = [c for c in reversed(state.checkpoints) if not before or c.save_id < before]
        page = newest_first[: requests.page_size(request.page_size)]
        more = len(newest_first) > len(page)
        now_ms = self._catalogues.now_ms()
        return pb.ListCheckpointsResponse(
            checkpoints=[_message(state, checkpoint, now_ms) for checkpoint in page],
            next_page_token=page[-1].save_id if more else "",
        )

    async def DeleteCheckpoint(self, request: pb.DeleteCheckpointRequest, context: Any) -> pb.DeleteCheckpointResponse:
        """Remove a checkpoint that nothing holds."""
        requests.check_delete(request)
        command = Delete(at_ms=self._catalogues.now_ms(), step=request.step)
        with _absent_is_not_found():
            await self._catalogues.handle(request.job, command, key=_key(request))
        return pb.DeleteCheckpointResponse()

    async def PinCheckpoint(self, request: pb.PinCheckpointRequest, context: Any) -> pb.PinCheckpointResponse:
        """Keep a checkpoint, or stop keeping it."""
        requests.check_pin(request)
        command = Pin(at_ms=self._catalogues.now_ms(), step=request.step, owner=request.owner, ttl_s=request.ttl_s)
        with _absent_is_not_found():
            await self._catalogues.handle(request.job, command, key=_key(request))
        state = await self._catalogues.load(request.job)
        checkpoint = _of_step(state, request.job, request.step)
        return pb.PinCheckpointResponse(checkpoint=_message(state, checkpoint, self._catalogues.now_ms()))

    async def _latest(self, job: str, checkpoint: Checkpoint | None) -> pb.GetLatestResponse:
        if checkpoint is None:
            return pb.GetLatestResponse()
        state = await self._catalogues.load(job)
        return pb.GetLatestResponse(checkpoint=_message(state, checkpoint, self._catalogues.now_ms()))


def _key(request: pb.DeleteCheckpointRequest | pb.PinCheckpointRequest) -> CommandKey | None:
    if not request.request_id:
        return None
    content = type(request).__name__.encode() + b"\n" + request.SerializeToString(deterministic=True)
    return CommandKey(f"checkpoints/{request.request_id}", content)


@contextmanager
def _absent_is_not_found() -> Generator[None]:
    try:
        yield
    except Rejection as rejection:
        if rejection.reason == reasons.UNKNOWN_CHECKPOINT:
            raise NotFound(rejection.reason, rejection.message, **rejection.metadata) from None
        raise


def _of_step(state: Catalogue, job: str, step: int) -> Checkpoint:
    checkpoint = state.of_step(step)
    if checkpoint is None:
        raise NotFound(
            reasons.UNKNOWN_CHECKPOINT,
            f"{job} has no checkpoint of step {step}; `distroml checkpoints list {job}` shows what there is",
            job=job,
        )
    return checkpoint


def _message(state: Catalogue, checkpoint: Checkpoint, now_ms: int) -> pb.Checkpoint:
    return pb.Checkpoint(
        job=state.job,
        project=state.project,
        step=checkpoint.step,
        generation=checkpoint.generation,
        manifest_hash=checkpoint.manifest_hash,
        shards=checkpoint.shards,
        bytes_total=checkpoint.bytes_total,
        bytes_written=checkpoint.bytes_written,
        bytes_reused=checkpoint.bytes_reused,
        at_ms=checkpoint.at_ms,
        state=checkpoint.phase,
        message=checkpoint.message,
        verified_at_ms=checkpoint.verified_at_ms,
        pinned=checkpoint.pinned(now_ms),
        save_s=checkpoint.save_s,
    )
