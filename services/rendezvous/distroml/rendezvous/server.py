"""RendezvousService: messages to commands, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distroml import observability
from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.api.rendezvous.v1 import rendezvous_pb2_grpc
from distroml.events import Rejection, is_name
from distroml.rendezvous.adapters.codec import stream_of
from distroml.rendezvous.adapters.members import Membership
from distroml.rendezvous.adapters.messages import (
    MAX_ID_CHARS,
    Malformed,
    generation_message,
    join_command,
    ready_command,
    report_command,
)
from distroml.rendezvous.domain import JoinNode, Leave, clip
from distroml.rendezvous.job import Job
from distroml.rendezvous.jobs import Jobs
from distroml.rendezvous.journal import REFUSED, SESSIONS
from distroml.rendezvous.session import Session
from distroml.rpc import Caller, caller
from distroml.rpc.errors import DeadlineExceeded, InvalidArgument, NotFound
from distroml.statestore import StateStore

log = observability.logger(__name__)

FIRST_MESSAGE_S = 10.0
"""How long a new stream may keep silent before it says who joins."""

_OF_THE_STREAM = frozenset({"StaleAttempt", "AgentReplaced", "NotJoined"})

if TYPE_CHECKING:
    from distroml.api.rendezvous.v1.rendezvous_pb2_grpc import RendezvousServiceServicer as _Servicer
else:
    _Servicer = rendezvous_pb2_grpc.RendezvousServiceServicer


class RendezvousServer(_Servicer):
    """Agents join here; everybody may ask for a job's generation."""

    def __init__(self, states: StateStore, jobs: Jobs, *, lease_ttl_s: int) -> None:
        self._states, self._jobs, self._lease_ttl_s = states, jobs, lease_ttl_s

    async def Join(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.JoinResponse]:
        """One agent's membership of one job attempt, until either side ends the stream."""
        requests: AsyncIterator[pb.JoinRequest] = aiter(request_iterator)
        first = await _first(requests)
        joining = join_command(first, _now_ms())
        who = replace(caller(), project=first.project or caller().project)
        conversation = _Conversation(self._states, self._lease_ttl_s, joining, who)
        with observability.bound(job=joining.job, node=joining.sender.node):
            async with self._jobs.using(joining.job) as job:
                job.spans.belongs_to(who.traceparent)
                SESSIONS.inc()
                reader = asyncio.create_task(conversation.listen(job, requests))
                try:
                    async for response in conversation.session:
                        yield response
                finally:
                    reader.cancel()
                    await asyncio.gather(reader, return_exceptions=True)
                    SESSIONS.dec()
                    job.leave(conversation.session)
                    await conversation.close()

    async def GetGeneration(self, request: pb.GetGenerationRequest, context: Any) -> pb.Generation:
        """The newest generation that the job's attempt has formed."""
        if not is_name(request.job):
            raise InvalidArgument([("job", f"{request.job[:80]!r} names no job")])
        state = (await self._jobs.repository.load(stream_of(request.job))).state
        if state.formed is None:
            text = f"job {request.job} has not formed a generation in its attempt {state.attempt}"
            raise NotFound("NoGeneration", text, job=request.job, number=str(state.number), phase=state.phase)
        return generation_message(state.formed)


class _Conversation:
    """The agent's half of a stream."""

    def __init__(self, states: StateStore, lease_ttl_s: int, joining: JoinNode, who: Caller) -> None:
        self._joining, self._sender, self._who = joining, joining.sender, who
        self.session = Session(joining.sender, lease_ttl_s)
        self._membership = Membership(states, joining.job, self._sender.node, self._sender.agent_id, lease_ttl_s)

    async def listen(self, job: Job, requests: AsyncIterator[pb.JoinRequest]) -> None:
        """Join, then obey each message in turn; ends the session when the agent does, or with what went wrong."""
        try:
            # Before the join is committed, so that no judge ever sees a member without a lease.
            await self._membership.take()
            await job.submit(self._joining, self._who, session=self.session)
            async for request in requests:
                self._membership.renew()
                await self._obey(job, request)
                if self.session.leaving:
                    await self._membership.end()
                    break
            self.session.end()
        except Exception as error:
            self.session.end(error)

    async def close(self) -> None:
        """Nothing more comes from this agent by this stream."""
        await self._membership.close()

    async def _obey(self, job: Job, request: pb.JoinRequest) -> None:
        match request.WhichOneof("kind"):
            case "heartbeat":
                pass
            case "ready":
                await job.submit(ready_command(request.ready, self._sender, _now_ms()), self._who)
            case "report":
                await self._report(job, request.report)
            case "join":
                await self._join_again(job, request.join)
            case "leave":
                self.session.leaving = True
                reason = clip(request.leave.reason, 1000)
                await job.submit(Leave(at_ms=_now_ms(), sender=self._sender, reason=reason), self._who)
            case _:
                raise InvalidArgument([("kind", "the message says nothing that this release knows")])

    async def _join_again(self, job: Job, message: pb.JoinNode) -> None:
        joining = join_command(message, _now_ms())
        if (joining.job, joining.sender) != (self._joining.job, self._sender):
            text = "a stream serves one job attempt, node and agent; open another stream for another one"
            raise InvalidArgument([("join", text)])
        self.session.accept(await job.submit(joining, self._who))

    async def _report(self, job: Job, report: pb.WorkerReport) -> None:
        if not 0 < len(report.report_id) <= MAX_ID_CHARS:
            raise InvalidArgument(
                [("report.report_id", f"needs 1 to {MAX_ID_CHARS} characters, to be acknowledged by")]
            )
        refused: list[pb.RefusedReport] = []
        known = f"{self._sender.node}/{report.report_id}"
        if known not in job.acked:
            try:
                await job.submit(report_command(report, self._sender, _now_ms()), self._who)
            except Malformed as error:
                refused.append(pb.RefusedReport(report_id=report.report_id, reason="Malformed", message=str(error)))
            except Rejection as error:
                if error.reason in _OF_THE_STREAM:
                    raise
                refused.append(pb.RefusedReport(report_id=report.report_id, reason=error.reason, message=error.message))
            for one in refused:
                REFUSED.labels(one.reason).inc()
                log.warning("a report was refused", report=one.report_id, reason=one.reason, why=one.message)
            job.acked.add(known)
        self.session.tell(pb.JoinResponse(ack=pb.ReportAck(report_ids=[report.report_id], refused=refused)))


async def _first(requests: AsyncIterator[pb.JoinRequest]) -> pb.JoinNode:
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            first = await anext(requests)
    except TimeoutError:
        text = f"the stream kept silent for {FIRST_MESSAGE_S:g} s; its first message is to be `join`"
        raise DeadlineExceeded("Silent", text) from None
    except StopAsyncIteration:
        raise InvalidArgument([("join", "the stream ended before it said who joins")]) from None
    if first.WhichOneof("kind") != "join":
        raise InvalidArgument([("join", "the first message of a stream is to be `join`")])
    return first.join


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
