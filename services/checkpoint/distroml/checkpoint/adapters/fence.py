"""The fence of a job: rendezvous writes it, every save compares it, and it goes with the stream of a job that ended."""

from __future__ import annotations

from distroml.checkpoint.domain import reasons
from distroml.events import Rejection
from distroml.eventstore import EventStore, Guard
from distroml.statestore import StateStore


class Fences:
    """Reads `fences/<job>`."""

    def __init__(self, store: StateStore, events: EventStore) -> None:
        self._store, self._events = store, events

    async def check(self, job: str, generation: int) -> Guard:
        """What a commit of `generation` must hold to.

        A job that rendezvous never opened a generation for has no fence; its saves hold to that staying so.

        Raises:
            Rejection: `StaleGeneration`, also where the job is over, or `UnknownGeneration` for one that is not open
                yet.
        """
        key = f"fences/{job}"
        entry = await self._store.get(key)
        if entry is None and await self._events.version(f"rendezvous/job/{job}"):
            # It may have been written this moment; else rendezvous took it away with the stream.
            entry = await self._store.get(key)
            if entry is None:
                raise Rejection(
                    reasons.STALE_GENERATION, f"{job} ended a while ago; what runs of generation {generation} must stop"
                )
        if entry is None:
            return Guard(key, revision=0)
        current = int(entry.value)
        if current > generation:
            raise Rejection(
                reasons.STALE_GENERATION,
                f"generation {current} of {job} has begun; generation {generation} must stop and join it",
                generation=str(current),
            )
        if current < generation:
            raise Rejection(
                reasons.UNKNOWN_GENERATION,
                f"generation {generation} of {job} is not open; the newest is {current}",
                generation=str(current),
            )
        return Guard(key, value=entry.value)
