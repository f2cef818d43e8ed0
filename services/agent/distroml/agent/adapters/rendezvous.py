"""The agent's stream to rendezvous for one attempt: joined, kept up, joined again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, cast

from grpc.aio import AioRpcError, Channel

from distroml.agent.adapters.streams import heed_cancellation
from distroml.agent.adapters.wire import category_from_wire, formed_from_wire
from distroml.agent.domain import inputs
from distroml.agent.domain.exits import Category
from distroml.agent.spool import Entry, Spool, is_told
from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.api.rendezvous.v1.rendezvous_pb2_grpc import RendezvousServiceStub
from distroml.observability import logger, trace
from distroml.rpc import Backoff, RemoteError

if TYPE_CHECKING:
    from distroml.api.rendezvous.v1.rendezvous_pb2_grpc import RendezvousServiceAsyncStub

log = logger(__name__)

REPORT = "worker_report"
MAX_UNSENT = 1_000
"""Reports that only memory keeps; the oldest go first. Exits are on disk besides."""

_FATAL = {"StaleAttempt", "AgentReplaced"}
_WRONG = {"BadGang", "TooLarge"}


Make = Callable[[], Awaitable[pb.JoinNode | None]]
"""How the node joins now; None where it cannot, which its maker has said elsewhere."""


class RendezvousStream:
    """Call `join` to begin, and again whenever what the node brings has changed."""

    def __init__(
        self,
        channel: Channel,
        spool: Spool,
        group: str,
        *,
        hear: Callable[[inputs.Input], None],
        heartbeat: Callable[[], int],
        traceparent: str = "",
    ) -> None:
        """`traceparent` is of the job: what comes of this membership belongs to its trace."""
        self._stub = cast("RendezvousServiceAsyncStub", RendezvousServiceStub(channel))
        self._spool = spool
        self._group = group
        self._hear = hear
        self._heartbeat = heartbeat
        self._traceparent = traceparent
        self._unacknowledged: dict[str, pb.WorkerReport] = {}
        self._make: Make | None = None
        self._task: asyncio.Task[None] | None = None
        self._joining: set[asyncio.Task[None]] = set()
        self._beating: asyncio.Task[None] | None = None
        self._call: asyncio.Queue[pb.JoinRequest | None] | None = None
        self._send: asyncio.Queue[pb.JoinRequest | None] | None = None
        self._beats_for: asyncio.Queue[pb.JoinRequest | None] | None = None
        self._leaving: asyncio.Future[None] | None = None
        self.dropped = 0
        for entry in spool.pending(kind=REPORT, group=group):
            report = pb.WorkerReport.FromString(entry.body)
            self._unacknowledged[report.report_id] = report

    def join(self, make: Make) -> None:
        """Join by what `make` gives: on the open stream where there is one, and again whenever it breaks."""
        self._make = make
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"rendezvous {self._group}")
        elif self._send is not None:
            task = asyncio.create_task(self._join_again(make), name=f"rendezvous join {self._group}")
            self._joining.add(task)
            task.add_done_callback(self._joining.discard)

    async def _join_again(self, make: Make) -> None:
        join = await make()
        if make is self._make and join is not None:
            self._say(pb.JoinRequest(join=join))

    def ready(self, after: int, workers: tuple[str, ...], error: str) -> None:
        """Say that all workers are free; an unjoined stream says it again when it is joined, by the policy."""
        self._say(pb.JoinRequest(ready=pb.MemberReady(after=after, workers=workers, error=error)))

    def report(self, report: pb.WorkerReport, *, durable: bool) -> None:
        """Deliver a report at least once; a durable one also after this agent's end."""
        if durable:
            try:
                self._spool.put(Entry(REPORT, self._group, self._key(report), report.SerializeToString()))
            except OSError as error:
                log.warning("an exit is not on disk; it goes by memory alone", worker=report.worker, error=str(error))
        self._unacknowledged[report.report_id] = report
        while len(self._unacknowledged) > MAX_UNSENT:
            oldest = next((id for id, r in self._unacknowledged.items() if not r.HasField("exited")), None)
            if oldest is None:
                break
            del self._unacknowledged[oldest]
            self.dropped += 1
            if is_told(self.dropped):
                text = "rendezvous is away for long: the oldest reports are dropped"
                log.warning(text, attempt=self._group, dropped=self.dropped)
        self._say(pb.JoinRequest(report=report))

    async def leave(self, reason: str, timeout_s: float = 2.0) -> None:
        """Leave for good; what could not be said in time, the lease says."""
        self._leaving = asyncio.get_running_loop().create_future()
        self._say(pb.JoinRequest(leave=pb.LeaveNode(reason=reason)))
        if self._send is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving, timeout_s)

    async def settle(self, timeout_s: float) -> None:
        """Wait until every report is acknowledged, for as long as the stream stands and at most `timeout_s`."""
        until = asyncio.get_running_loop().time() + timeout_s
        while self._unacknowledged and self._send is not None and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        """End the stream; what is unacknowledged and durable stays in the spool."""
        tasks = [task for task in (self._task, self._beating, *self._joining) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def forget(self) -> None:
        """The attempt is over: nobody asks for its reports any more."""
        self._unacknowledged.clear()
        self._spool.forget(kind=REPORT, group=self._group)

    def _key(self, report: pb.WorkerReport) -> str:
        return f"{self._group}/{report.report_id}"

    def _say(self, request: pb.JoinRequest) -> None:
        if self._send is not None:
            self._send.put_nowait(request)

    async def _run(self) -> None:
        backoff = Backoff(0.1, 2.0)
        told = False
        while True:
            queue: asyncio.Queue[pb.JoinRequest | None] = asyncio.Queue()
            self._call = queue
            try:
                assert self._make is not None
                made = self._make
                join = await made()
                if join is None:
                    return
                with trace.use(trace.parse(self._traceparent)):
                    call = self._stub.Join(self._requests(queue, made, join))
                async for response in call:
                    if response.HasField("accepted"):
                        backoff.reset()
                        told = False
                    self._heard(response)
            except AioRpcError as error:
                heed_cancellation()
                if self._refused(error):
                    return
                if not told:
                    log.info("rendezvous is away; workers go on", attempt=self._group, error=str(error))
                    told = True
            # gRPC leaves the request iterator of a failed call waiting: end it, and let it take nothing over.
            self._call = self._send = None
            queue.put_nowait(None)
            if self._leaving is not None and not self._leaving.done():
                self._leaving.set_result(None)
            self._hear(inputs.JoinEnded())
            await backoff.wait()

    def _refused(self, error: AioRpcError) -> bool:
        if not isinstance(error, RemoteError):
            return False
        if error.reason in _FATAL:
            log.warning("rendezvous goes on without this attempt", attempt=self._group, error=str(error))
            self._hear(inputs.WasClosed("Stopped", Category.UNSPECIFIED, error.message))
            return True
        if error.reason in _WRONG:
            self._hear(inputs.PrepareFailed(f"rendezvous refused the node: {error.message}"))
            return True
        return False

    async def _requests(
        self, queue: asyncio.Queue[pb.JoinRequest | None], made: Make, join: pb.JoinNode
    ) -> AsyncIterator[pb.JoinRequest]:
        yield pb.JoinRequest(join=join)
        if self._call is not queue:
            return
        # From here on what is said waits in the queue: nothing may fall between this list and the queue.
        self._send = queue
        for report in list(self._unacknowledged.values()):
            yield pb.JoinRequest(report=report)
        if self._make is not None and self._make is not made:
            # What the node brings changed while the stream was being dialled.
            self.join(self._make)
        while True:
            request = await queue.get()
            if request is None:
                return
            yield request
            if request.HasField("leave"):
                return

    def _heard(self, response: pb.JoinResponse) -> None:
        match response.WhichOneof("kind"):
            case "accepted":
                self._hear(inputs.Accepted())
                self._beat_every(max(1, response.accepted.lease_ttl_s or 30) / 3)
            case "opened":
                self._hear(inputs.Opened(response.opened.number))
            case "formed":
                above = response.traceparent or self._traceparent
                self._hear(inputs.GenerationIs(formed_from_wire(response.formed, above)))
            case "broken":
                broken = response.broken
                self._hear(inputs.Broke(broken.number, broken.message or broken.cause))
            case "closed":
                closed = response.closed
                text = closed.message or closed.reason
                self._hear(inputs.WasClosed(closed.outcome, category_from_wire(closed.category), text))
            case "drain":
                self._hear(inputs.DrainAsked(response.drain.generation, response.drain.reason))
            case "ack":
                for refused in response.ack.refused:
                    log.warning("rendezvous refused a report", report=refused.report_id, why=refused.message)
                for id in response.ack.report_ids:
                    report = self._unacknowledged.pop(id, None)
                    if report is not None:
                        self._spool.ack(self._key(report))
            case _:
                log.warning("rendezvous said something this agent does not know", attempt=self._group)

    def _beat_every(self, period_s: float) -> None:
        queue = self._send
        if self._beating is not None and not self._beating.done() and self._beats_for is queue:
            return

        async def beat() -> None:
            while self._send is queue and queue is not None:
                await asyncio.sleep(period_s)
                queue.put_nowait(pb.JoinRequest(heartbeat=pb.MemberHeartbeat(generation=self._heartbeat())))

        if self._beating is not None:
            self._beating.cancel()
        self._beats_for = queue
        self._beating = asyncio.create_task(beat(), name=f"rendezvous heartbeat {self._group}")
