"""What follows from the catalogue's own events: completing, retention, removal of objects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from distroml import observability
from distroml.checkpoint.adapters.codecs import STREAMS
from distroml.checkpoint.adapters.lease import under_lease
from distroml.checkpoint.catalogues import Catalogues
from distroml.events import Recorded
from distroml.eventstore import EventStore, Fenced, Guard
from distroml.observability.tracing import Tracing
from distroml.rpc import calling, system_caller
from distroml.rpc.retirement import Retirement
from distroml.rpc.spans import processing
from distroml.statestore import StateStore
from distroml.statestore.failpoint import hit

log = observability.logger(__name__)

DURABLE = "checkpoint.keeper"
LEASE = "leases/checkpoint/keeper"

_Reaction = Callable[[str, tuple[Guard, ...]], Awaitable[object]]


class Keeper:
    """Reads the catalogue's events under a lease. Every reaction may be repeated; nothing is lost by a kill.

    - ShardReported: completes a save whose last report was recorded by a service that died before it committed.
    - Committed: lets retention decide what is deleted.
    - Deleted, SaveFailed: removes the objects that nothing needs any more.

    Beside it, under the same lease, `retirement` goes over the catalogues.
    """

    def __init__(
        self,
        events: EventStore,
        leases: StateStore,
        catalogues: Catalogues,
        retirement: Retirement,
        tracing: Tracing,
        *,
        holder: str,
        ttl_s: int,
    ) -> None:
        self._events, self._leases, self._catalogues, self._tracing = events, leases, catalogues, tracing
        self._retirement = retirement
        self._holder, self._ttl_s = holder, ttl_s

    async def run(self) -> None:
        """React until cancelled; raises what a reaction raises, to be started again."""
        await under_lease(self._leases, LEASE, self._holder, self._ttl_s, self._keep)

    async def _keep(self, guard: Guard) -> None:
        async with self._retirement.beside(guard):
            await self._react(guard)

    async def _react(self, guard: Guard) -> None:
        subscription = self._events.subscribe(DURABLE, streams=(STREAMS,))
        try:
            async for recorded in subscription:
                reaction = self._reaction(recorded)
                if reaction is not None:
                    await self._react_to(recorded, reaction, guard)
                hit("checkpoint.react")
                await subscription.ack(recorded)
        finally:
            await subscription.close()

    async def _react_to(self, recorded: Recorded, reaction: _Reaction, guard: Guard) -> None:
        with (
            processing(self._tracing, DURABLE, recorded),
            calling(system_caller(correlation_id=recorded.context.correlation_id)),
        ):
            try:
                await reaction(recorded.stream.removeprefix(STREAMS), (guard,))
            except Fenced as fenced:
                if fenced.key == guard.key:
                    raise
                # The job's own fence moved: whoever reports next is told, and closes the save.
                log.info("a reaction was fenced off", stream=recorded.stream, key=fenced.key)

    def _reaction(self, recorded: Recorded) -> _Reaction | None:
        match recorded.type:
            case "checkpoint.private.ShardReported":
                return self._catalogues.finish
            case "checkpoint.Committed":
                return self._catalogues.collect
            case "checkpoint.Deleted" | "checkpoint.SaveFailed":
                return lambda job, _: self._catalogues.sweep(job)
            case _:
                return None
