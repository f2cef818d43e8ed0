"""What happens in rendezvous becomes commands for jobs: the only place where that causes anything."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from distroml.api.common.v1 import common_pb2
from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.events import Recorded, Rejection, UnknownEvent
from distroml.eventstore import Guard, Subscription
from distroml.eventstore.handle import CommandKey, Unit
from distroml.observability import logger
from distroml.observability.tracing import Tracing
from distroml.rpc import calling, system_caller
from distroml.rpc.publicevents import decode_public
from distroml.rpc.spans import processing
from distroml.scheduler.adapters.messages import category_of
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.metrics import SKIPPED
from distroml.scheduler.streams import Load, Streams, now_ms

log = logger(__name__)

DURABLE: Final = "scheduler.rendezvous"
STREAMS: Final = ("rendezvous/job/",)
ACK_EVERY: Final = 100
"""Events without meaning here come again after a restart, at most so many: each acknowledgement is a write."""

# A broken generation of these kinds is nobody's failure: rendezvous does not count it either.
_UNCOUNTED: Final = frozenset(
    {
        common_pb2.FAILURE_CATEGORY_UNSPECIFIED,
        common_pb2.FAILURE_CATEGORY_NODE_LOST,
        common_pb2.FAILURE_CATEGORY_PREEMPTED,
    }
)
_OUTCOMES: Final = ("Succeeded", "Failed", "Stopped")


class Reactor:
    """Turns rendezvous' events into commands, at least once; a command's id derives from the event's position.

    A damaged event holds its stream: later events of that stream wait, the others go on, and the cursor stays
    before it, so that a repaired release starts there.
    """

    def __init__(
        self, streams: Streams, tracing: Tracing, report: Callable[[str | None], None] = lambda why: None
    ) -> None:
        """`report` is told what is held, None where nothing is."""
        self._streams, self._tracing, self._report = streams, tracing, report
        self._held: dict[str, str] = {}

    async def run(self, guard: Guard) -> None:
        """Until cancelled; raises `Fenced` where another replica took over."""
        subscription = self._streams.store.subscribe(DURABLE, streams=STREAMS)
        try:
            await self._follow(subscription, guard)
        finally:
            await asyncio.shield(subscription.close())

    async def _follow(self, subscription: Subscription, guard: Guard) -> None:
        self._held.clear()
        self._report(None)
        unacknowledged = 0
        async for recorded in subscription:
            mattered = recorded.stream not in self._held and await self._take(recorded, guard)
            unacknowledged += 1
            if not self._held and (mattered or unacknowledged >= ACK_EVERY):
                await subscription.ack(recorded)
                unacknowledged = 0

    async def _take(self, recorded: Recorded, guard: Guard) -> bool:
        """Whether the event meant anything here."""
        try:
            command = command_of(recorded)
        except UnknownEvent:
            SKIPPED.labels("unknown").inc()
            return False
        except ValueError as damaged:
            self._held[recorded.stream] = f"{recorded.type} at {recorded.position}: {damaged}"
            self._report("; ".join(self._held.values()))
            log.error("a damaged event holds its stream", stream=recorded.stream, position=str(recorded.position))
            return False
        if command is None:
            return False
        job = recorded.stream.rpartition("/")[2]
        with (
            processing(self._tracing, DURABLE, recorded),
            calling(system_caller(actor=DURABLE, correlation_id=recorded.context.correlation_id)),
        ):
            try:
                await self._do(job, command, recorded, guard)
            except Rejection as rejection:
                SKIPPED.labels("refused").inc()
                log.warning(
                    "an event does not fit its job", job=job, position=str(recorded.position), why=str(rejection)
                )
        return True

    async def _do(self, job: str, command: c.Command, recorded: Recorded, guard: Guard) -> None:
        async def decide(load: Load) -> Unit:
            return Unit(((await load.job(job)).decide(command),), guards=(guard,))

        context = self._streams.context(
            project=recorded.context.project, causation_id=recorded.id, generation=recorded.context.generation
        )
        key = CommandKey(f"{DURABLE}/{recorded.position}", recorded.data)
        await self._streams.transact(decide, context=context, command=key)


def command_of(recorded: Recorded) -> c.Command | None:
    """What an event means for its job, None where nothing; raises `UnknownEvent` or `ValueError`."""
    if not recorded.public:
        return None
    message = decode_public(recorded.type, recorded.schema, recorded.data)
    at = now_ms()
    match message:
        case pb.GenerationFormed(generation=formed):
            return c.Start(at_ms=at, attempt=formed.attempt, generation=formed.number)
        case pb.GenerationBroken() if message.category not in _UNCOUNTED:
            return c.CountFailure(
                at_ms=at,
                generation=message.number,
                category=category_of(message.category),
                message=message.message or message.cause,
            )
        case pb.Closed():
            if message.outcome not in _OUTCOMES:
                raise ValueError(f"rendezvous closed with outcome {message.outcome!r}")
            return c.Finish(
                at_ms=at,
                attempt=message.attempt,
                outcome=message.outcome,
                category=category_of(message.category),
                reason=message.reason,
                message=message.message,
            )
        case _:
            return None
