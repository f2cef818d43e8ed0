"""What follows from the catalogue's own events: completing, retention, removal of objects."""

from __future__ import annotations

from distroml import observability
from distroml.checkpoint.adapters.codecs import STREAMS
from distroml.checkpoint.adapters.lease import under_lease
from distroml.checkpoint.catalogues import Catalogues
from distroml.events import Recorded
from distroml.eventstore import EventStore, Fenced, Guard
from distroml.rpc import calling, system_caller
from distroml.statestore import StateStore
from distroml.statestore.failpoint import hit

log = observability.logger(__name__)

DURABLE = "checkpoint.keeper"
LEASE = "leases/checkpoint/keeper"


class Keeper:
    """Reads the catalogue's events under a lease. Every reaction may be repeated; nothing is lost by a kill.

    - ShardReported: completes a save whose last report was recorded by a service that died before it committed.
    - Committed: lets retention decide what is deleted.
    - Deleted, SaveFailed: removes the objects that nothing needs any more.
    """

    def __init__(
        self, events: EventStore, leases: StateStore, catalogues: Catalogues, *, holder: str, ttl_s: int
    ) -> None:
        self._events, self._leases, self._catalogues = events, leases, catalogues
        self._holder, self._ttl_s = holder, ttl_s

    async def run(self) -> None:
        """React until cancelled; raises what a reaction raises, to be started again."""
        await under_lease(self._leases, LEASE, self._holder, self._ttl_s, self._react)

    async def _react(self, guard: Guard) -> None:
        subscription = self._events.subscribe(DURABLE, streams=(STREAMS,))
        try:
            async for recorded in subscription:
                with calling(system_caller(correlation_id=recorded.context.correlation_id)):
                    try:
                        await self._reaction(recorded, guard)
                    except Fenced as fenced:
                        if fenced.key == guard.key:
                            raise
                        # The job's own fence moved: whoever reports next is told, and closes the save.
                        log.info("a reaction was fenced off", stream=recorded.stream, key=fenced.key)
                hit("checkpoint.react")
                await subscription.ack(recorded)
        finally:
            await subscription.close()

    async def _reaction(self, recorded: Recorded, guard: Guard) -> None:
        job = recorded.stream.removeprefix(STREAMS)
        match recorded.type:
            case "checkpoint.private.ShardReported":
                await self._catalogues.finish(job, (guard,))
            case "checkpoint.Committed":
                await self._catalogues.collect(job, (guard,))
            case "checkpoint.Deleted" | "checkpoint.SaveFailed":
                await self._catalogues.sweep(job)
            case _:
                pass
