"""Workers' saves on their way to the catalogue, and its answers on their way back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from grpc.aio import Channel

from distroml.agent.adapters.streams import heed_cancellation
from distroml.agent.spool import Entry, Spool
from distroml.api.checkpoint.v1 import checkpoint_pb2 as pb
from distroml.api.checkpoint.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from distroml.observability import logger, trace
from distroml.rpc import Backoff, RemoteError
from distroml.workerlink import (
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointRef,
    CorruptionFound,
    Latest,
    SaveBegun,
    SaveFailed,
    SaveOpened,
    SaveRefused,
    ShardSaved,
    ToWorker,
)

if TYPE_CHECKING:
    from distroml.api.checkpoint.v1.checkpoint_pb2_grpc import CheckpointServiceAsyncStub

log = logger(__name__)

BEGIN_S = 10.0
"""How long a worker waits to hear whether it may save, where it does not say that it has more patience."""

ASK_S = 300.0
"""How long a worker's question for the newest checkpoint is repeated while the catalogue is away."""

REPORT_S = 1800.0
"""How long a report is repeated in one go; the spool keeps it beyond, for when another call was answered."""

SHARD, FAILED = "shard", "save_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What the catalogue wants to know with each save."""

    job: str
    project: str
    keep: int
    traceparent: str = ""


class Checkpoints:
    """One job's saves on this node. Nothing here waits on the caller: answers go out by `tell`."""

    def __init__(self, channel: Channel, facts: JobFacts, spool: Spool, tell: Callable[[str, ToWorker], bool]) -> None:
        self._stub = cast("CheckpointServiceAsyncStub", CheckpointServiceStub(channel))
        self._facts = facts
        self._spool = spool
        self._tell = tell
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def resume(self) -> None:
        """Send what an earlier agent could not, or this one after `REPORT_S`; what is under way already goes on."""
        for entry in self._spool.pending(group=self._facts.job):
            worker = entry.id.partition("/")[0]
            if entry.kind == SHARD:
                self._spawn(entry.id, self._report(worker, pb.ReportShardRequest.FromString(entry.body), entry.id))
            elif entry.kind == FAILED:
                self._spawn(entry.id, self._fail(pb.ReportSaveFailedRequest.FromString(entry.body), entry.id))

    def on_begun(self, worker: str, said: SaveBegun) -> None:
        """A worker wants to save."""
        self._spawn(f"{worker}/{said.generation}/{said.step}/begin", self._begin(worker, said), said.traceparent)

    def on_shard(self, worker: str, said: ShardSaved) -> None:
        """A worker's part is durable."""
        id = f"{worker}/{said.generation}/{said.step}/shard"
        request = pb.ReportShardRequest(
            job=self._facts.job,
            generation=said.generation,
            step=said.step,
            rank=said.rank,
            world_size=said.world_size,
            shard_key=said.shard_key,
            shard_hash=said.shard_hash,
            bytes_written=said.bytes_written,
            bytes_reused=said.bytes_reused,
            request_id=id,
            seconds=said.seconds,
        )
        self._keep(SHARD, id, request.SerializeToString())
        self._spawn(id, self._report(worker, request, id), said.traceparent)

    def on_failed(self, worker: str, said: SaveFailed) -> None:
        """A worker could not save."""
        id = f"{worker}/{said.generation}/{said.step}/failed"
        request = pb.ReportSaveFailedRequest(
            job=self._facts.job,
            generation=said.generation,
            step=said.step,
            rank=said.rank,
            message=said.message,
            request_id=id,
        )
        self._keep(FAILED, id, request.SerializeToString())
        self._spawn(id, self._fail(request, id))

    def on_corruption(self, worker: str, said: CorruptionFound) -> None:
        """A worker read damaged bytes; it waits for the next best checkpoint."""
        request = pb.ReportCorruptionRequest(
            job=self._facts.job,
            manifest_hash=said.manifest_hash,
            object_key=said.object_key,
            chunk_hash=said.chunk_hash,
            message=said.message,
            request_id=f"{worker}/{said.generation}/{said.manifest_hash}/corrupt",
            generation=said.generation,
        )

        async def ask() -> None:
            what = "report damage"
            try:
                answer = await self._repeat(lambda: self._stub.ReportCorruption(request), REPORT_S, what)
            except RemoteError as error:
                self._note_refusal(error, what)
            else:
                self._tell(worker, Latest(restore=_ref(answer)))

        self._spawn(request.request_id, ask())

    def on_ask(self, worker: str, generation: int) -> None:
        """A worker asks for the newest checkpoint."""

        async def ask() -> None:
            restore = await self.latest(generation, patience_s=ASK_S)
            self._tell(worker, Latest(restore=restore))

        self._spawn(f"{worker}/latest", ask())

    async def latest(self, generation: int, *, patience_s: float = math.inf) -> CheckpointRef | None:
        """The newest sound checkpoint that `generation` may start from.

        A catalogue that is away is waited for: that alone is no reason for an attempt to fail.

        Raises:
            RemoteError: the catalogue refused, or was away for `patience_s`.
        """
        request = pb.GetLatestRequest(job=self._facts.job, generation=generation)
        what = "ask for the newest checkpoint"
        return _ref(await self._repeat(lambda: self._stub.GetLatest(request), patience_s, what))

    async def close(self) -> None:
        """Stop; what is spooled stays."""
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # ---- one call each

    async def _begin(self, worker: str, said: SaveBegun) -> None:
        request = pb.BeginSaveRequest(
            job=self._facts.job,
            project=self._facts.project,
            generation=said.generation,
            step=said.step,
            world_size=said.world_size,
            request_id=f"{worker}/{said.generation}/{said.step}/begin",
            keep=self._facts.keep,
        )
        try:
            patience_s = max(BEGIN_S, said.patience_s)
            answer = await self._repeat(lambda: self._stub.BeginSave(request), patience_s, "open a save")
        except RemoteError as error:
            self._tell(worker, SaveRefused(step=said.step, reason=error.reason, message=error.message))
            if error.is_transient:
                # Only the answer may be lost. An open save that no rank takes part in would hold up those after it.
                text = f"rank {said.rank} did not hear in time that the save is open: {error.message}"
                self.on_failed(
                    worker, SaveFailed(generation=said.generation, step=said.step, rank=said.rank, message=text)
                )
            return
        self._tell(
            worker,
            SaveOpened(
                step=said.step,
                save_id=answer.save_id,
                base_manifest_hash=answer.base_manifest_hash,
                object_prefix=answer.object_prefix,
            ),
        )

    async def _report(self, worker: str, request: pb.ReportShardRequest, id: str) -> None:
        """Repeat the report until the catalogue says what became of the save."""
        backoff = Backoff(0.05, 1.0)
        try:
            async with asyncio.timeout(REPORT_S):
                while True:
                    answer = await self._repeat(lambda: self._stub.ReportShard(request), math.inf, "report a shard")
                    self._spool.ack(id)
                    if answer.committed:
                        committed = CheckpointCommitted(step=request.step, manifest_hash=answer.manifest_hash)
                        self._tell(worker, committed)
                        return
                    await backoff.wait()
        except RemoteError as error:
            self._spool.ack(id)
            self._tell(worker, CheckpointFailed(step=request.step, message=error.message))
        except TimeoutError:
            text = f"the catalogue did not decide within {REPORT_S:.0f} s"
            self._tell(worker, CheckpointFailed(step=request.step, message=text))

    async def _fail(self, request: pb.ReportSaveFailedRequest, id: str) -> None:
        what = "report a failed save"
        try:
            await self._repeat(lambda: self._stub.ReportSaveFailed(request), REPORT_S, what)
        except RemoteError as error:
            self._note_refusal(error, what)
            if error.is_transient:
                return
        self._spool.ack(id)

    async def _repeat(self, call: Callable[[], Any], limit_s: float, what: str) -> Any:
        """Call until it is answered; what is not transient, or too long away, is raised."""
        backoff = Backoff(0.1, 2.0)
        until = asyncio.get_running_loop().time() + limit_s
        told = False
        while True:
            try:
                answer = await call()
            except RemoteError as error:
                heed_cancellation()
                if not error.is_transient or asyncio.get_running_loop().time() >= until:
                    raise
                if not told:
                    log.info(f"cannot {what} yet; trying again", job=self._facts.job, error=str(error))
                    told = True
                await backoff.wait()
            else:
                self.resume()
                return answer

    def _note_refusal(self, error: RemoteError, what: str) -> None:
        log.warning(f"the catalogue did not let us {what}", job=self._facts.job, reason=error.reason, error=str(error))

    def _keep(self, kind: str, id: str, body: bytes) -> None:
        try:
            self._spool.put(Entry(kind, self._facts.job, id, body))
        except OSError as error:
            log.warning("a save report is not on disk; it goes by memory alone", job=self._facts.job, error=str(error))

    def _spawn(self, key: str, work: Coroutine[Any, Any, None], traceparent: str = "") -> None:
        """One task per thing said, in the trace of whoever said it: a worker that reconnects may say it again."""
        if key in self._tasks:
            work.close()
            return
        with trace.use(trace.parse(traceparent or self._facts.traceparent)):
            task = asyncio.create_task(work, name=key)
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._done(key, done))

    def _done(self, key: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("a call for a worker failed", call=key, error=f"{type(error).__name__}: {error}")


def _ref(answer: pb.GetLatestResponse) -> CheckpointRef | None:
    if not answer.HasField("checkpoint"):
        return None
    return CheckpointRef(step=answer.checkpoint.step, manifest_hash=answer.checkpoint.manifest_hash)
