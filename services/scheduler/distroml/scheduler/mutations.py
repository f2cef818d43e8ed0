"""What users change: message -> command -> commit -> message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.events import Rejection, fresh_id
from distroml.eventstore.handle import CommandKey, Unit
from distroml.objectstore import ObjectStore
from distroml.rpc import caller, errors
from distroml.scheduler.adapters.messages import job_message, node_message, spec_of
from distroml.scheduler.board import Board
from distroml.scheduler.bundles import bundle_exists
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain import node as nodes
from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.explain import explain
from distroml.scheduler.domain.job import JOB
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.plan import Pending, place_queue
from distroml.scheduler.domain.queue import STRICT_FIFO
from distroml.scheduler.domain.spec import completed
from distroml.scheduler.domain.validation import violations
from distroml.scheduler.find import Finder
from distroml.scheduler.streams import JobDraft, Load, Streams, now_ms

MAX_REQUEST_ID_CHARS: Final = 128
VERSION_MISMATCH: Final = "VersionMismatch"


class _Request(Protocol):
    """Every request that may be repeated."""

    @property
    def request_id(self) -> str: ...

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...


class _JobRequest(_Request, Protocol):
    """A request about one job that two callers may make at once."""

    @property
    def job(self) -> str: ...

    @property
    def expected_version(self) -> int: ...


class Mutations:
    """Every change that users make. A repeated request id is answered as the first time, for 24 hours."""

    def __init__(
        self, streams: Streams, board: Board, finder: Finder, objects: ObjectStore, *, max_unfinished: int
    ) -> None:
        self._streams, self._board, self._finder, self._objects = streams, board, finder, objects
        self._max_unfinished = max_unfinished

    async def submit(self, request: pb.SubmitJobRequest) -> pb.Job:
        """Take a job in, or only say what would become of it."""
        spec = completed(spec_of(request.spec), project=caller().project)
        wrong = list(violations(spec))
        if not wrong and spec.bundle and not await bundle_exists(self._objects, spec.bundle):
            wrong = [("spec.bundle", "is not stored here; send it with PutBundle before the job")]
        if wrong:
            raise errors.InvalidArgument(wrong, reason="InvalidJobSpec")
        command = c.Submit(
            at_ms=now_ms(), job=fresh_id("job"), spec=spec, actor=caller().actor, traceparent=caller().traceparent
        )
        if request.validate_only:
            return self._preview(command)
        key = _key(request)

        async def decide(load: Load) -> Unit:
            # A repeat is answered by its first outcome, even when the queue is full by now.
            if len(self._board.jobs) >= self._max_unfinished:
                message = f"{self._max_unfinished} jobs are unfinished, no more are taken; wait or cancel some"
                raise Rejection("QueueFull", message, limit=str(self._max_unfinished))
            draft = (await load.job(command.job)).decide(command)
            return Unit((draft,), answer=self._answer(draft))

        try:
            outcome = await self._streams.transact(
                decide, context=self._streams.context(project=spec.project), command=key
            )
        except Rejection as rejection:
            raise _as_call_error(rejection) from None
        return await self._reply(outcome.answer, None if outcome.position is None else str(outcome.position))

    def _preview(self, command: c.Submit) -> pb.Job:
        job = JOB.fold(JOB.decide(JOB.initial, command))
        snapshot = self._board.snapshot()
        plan = place_queue(
            type(snapshot)({**snapshot.jobs, job.id: job}, snapshot.nodes, snapshot.ledger), STRICT_FIFO, 0
        )
        starts = Pending(1, reasons.STARTING, "would start at once")
        message = job_message(job, 0, str(self._board.position), explain(job, plan.pending.get(job.id, starts)))
        message.id = message.name = ""
        return message

    async def cancel(self, request: pb.CancelJobRequest) -> pb.Job:
        """End a job."""
        return await self._change(request, lambda at, actor: c.Cancel(at_ms=at, actor=actor, why=request.why[:1000]))

    async def pause(self, request: pb.PauseJobRequest) -> pb.Job:
        """Let a job save and give its slots back."""
        return await self._change(request, lambda at, actor: c.Pause(at_ms=at, actor=actor))

    async def resume(self, request: pb.ResumeJobRequest) -> pb.Job:
        """Queue a paused job again."""
        return await self._change(request, lambda at, actor: c.Resume(at_ms=at, actor=actor))

    async def resize(self, request: pb.ResizeJobRequest) -> pb.Job:
        """Change how many workers a job has."""
        low, high = request.min_workers, request.max_workers or request.min_workers
        return await self._change(
            request, lambda at, actor: c.Resize(at_ms=at, min_workers=low, max_workers=high, actor=actor)
        )

    async def set_priority(self, request: pb.SetPriorityRequest) -> pb.Job:
        """Move a job in the queue."""
        return await self._change(
            request, lambda at, actor: c.SetPriority(at_ms=at, priority=request.priority, actor=actor)
        )

    async def cordon(self, request: pb.CordonNodeRequest) -> pb.Node:
        """Close a node to new gangs."""
        command = nodes.Cordon(at_ms=now_ms(), actor=caller().actor)
        return await self._change_node(request.node, request, command, pool.WithdrawNode(node=request.node, lost=False))

    async def uncordon(self, request: pb.UncordonNodeRequest) -> pb.Node:
        """Open a node again."""
        return await self._change_node(
            request.node, request, nodes.Uncordon(at_ms=now_ms(), actor=caller().actor), None
        )

    # ---- shared

    async def _change(self, request: _JobRequest, command_of: Callable[[int, str], c.Command]) -> pb.Job:
        found = await self._finder.job(request.job)
        command = command_of(now_ms(), caller().actor)
        context = self._streams.context(project=found.state.spec.project, generation=found.state.generation)

        async def decide(load: Load) -> Unit:
            draft = await load.job(found.state.id)
            if request.expected_version and draft.version != request.expected_version:
                message = (
                    f"job {found.state.id} is at version {draft.version}, not {request.expected_version}: somebody "
                    "else changed it; read it again and decide again"
                )
                raise Rejection(VERSION_MISMATCH, message, actual=str(draft.version))
            draft = draft.decide(command)
            return Unit((draft,), answer=self._answer(draft))

        try:
            outcome = await self._streams.transact(decide, context=context, command=_key(request))
        except Rejection as rejection:
            raise _as_call_error(rejection) from None
        return await self._reply(outcome.answer, None if outcome.position is None else str(outcome.position))

    async def _change_node(
        self, name: str, request: _Request, command: nodes.Command, withdrawal: pool.WithdrawNode | None
    ) -> pb.Node:
        async def decide(load: Load) -> Unit:
            node, ledger = (await load.node(name)).decide(command), await load.ledger()
            change = withdrawal or pool.OfferSlots(node=name, slots=node.state.slots)
            if node.state.state is not nodes.NodeState.LOST:
                ledger = ledger.decide(change)
            answer = node_message(node.state, ledger.state.held()).SerializeToString()
            return Unit((node, ledger), answer=answer)

        try:
            outcome = await self._streams.transact(decide, context=self._streams.context(), command=_key(request))
        except Rejection as rejection:
            raise _as_call_error(rejection) from None
        return pb.Node.FromString(outcome.answer)

    def _answer(self, draft: JobDraft) -> bytes:
        # Where a waiting job stands is for the next cycle to say, not for the change that woke it.
        version = draft.version + len(draft.events)
        return job_message(draft.state, version, "", explain(draft.state, None)).SerializeToString()

    async def _reply(self, answer: bytes, position: str | None) -> pb.Job:
        job = pb.Job.FromString(answer)
        job.position = position or str(await self._streams.position())
        return job


def _key(request: _Request) -> CommandKey | None:
    if not request.request_id:
        return None
    if len(request.request_id) > MAX_REQUEST_ID_CHARS or not request.request_id.isprintable():
        what = f"is longer than {MAX_REQUEST_ID_CHARS} characters or not printable; use a fresh UUID"
        raise errors.InvalidArgument([("request_id", what)])
    content = type(request).__name__.encode() + b"\n" + request.SerializeToString(deterministic=True)
    return CommandKey(f"jobs/{request.request_id}", content)


def _as_call_error(rejection: Rejection) -> Exception:
    """Refusals that have a status of their own; the others are failed preconditions by the common table."""
    reason, message, metadata = rejection.reason, rejection.message, dict(rejection.metadata)
    match reason:
        case "VersionMismatch":
            return errors.Aborted(reason, message, **metadata)
        case "QueueFull":
            return errors.ResourceExhausted(reason, message, **metadata)
        case reasons.NO_SUCH_JOB | reasons.NO_SUCH_NODE:
            return errors.NotFound(reason, message, **metadata)
        case reasons.BAD_WORKER_RANGE:
            return errors.InvalidArgument([("min_workers", message)], reason=reason)
        case _:
            return rejection
