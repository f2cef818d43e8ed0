"""A durable reader of the log, over any store that can scan it and be waited on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from distroml.events import Position, Recorded
from distroml.eventstore.log import Place
from distroml.statestore.wake import Wake

BATCH = 256


class _Source(Protocol):
    """What a subscription needs of its store."""

    @property
    def wake(self) -> Wake: ...

    @property
    def closed(self) -> bool: ...

    async def scan(self, after: Place, streams: Sequence[str], limit: int) -> tuple[Sequence[Recorded], Place]: ...

    async def open_cursor(self, durable: str, start: Place) -> Place: ...

    async def move_cursor(self, durable: str, position: Position) -> None: ...


class LogSubscription:
    """`Subscription` of the embedded stores. Its cursor is made when iteration begins, and moved by `ack`.

    Two subscriptions of one name at once each get every event: run a reactor under a lease.
    """

    def __init__(self, source: _Source, durable: str, streams: tuple[str, ...], start: Place) -> None:
        self._source, self._durable, self._streams, self._start = source, durable, streams, start
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[Recorded]:
        """Events from the cursor on, waiting for new ones; ends when the subscription or its store is closed."""
        place = await self._source.open_cursor(self._durable, self._start)
        wake = self._source.wake
        while not self._ended:
            seen = wake.count
            batch, place = await self._source.scan(place, self._streams, BATCH)
            for recorded in batch:
                if self._ended:
                    return
                yield recorded
            if not batch and not self._ended:
                await wake.past(seen)

    async def ack(self, recorded: Recorded) -> None:
        """Everything up to and including `recorded` is done with; out of order, the furthest counts."""
        await self._source.move_cursor(self._durable, recorded.position)

    async def close(self) -> None:
        """End the iteration; the cursor stays."""
        self._closed = True
        self._source.wake.notify()

    @property
    def _ended(self) -> bool:
        return self._closed or self._source.closed
