"""History made anew from the log, beside the old one, which is read until the new one takes its place."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from distroml.events import Position
from distroml.eventstore import EventStore
from distroml.telemetry.history.port import History
from distroml.telemetry.projecting import pages

PAGE = 4096
_TELL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far it is: events read, the last one's position, the log's head when it was begun."""

    events: int
    position: Position | None
    head: Position
    seconds: float
    done: bool


async def rebuild(history: History, store: EventStore, *, page: int = PAGE) -> AsyncGenerator[Progress]:
    """Fold the whole log into an empty history and put it in the place of `history`; says about twice a second how far.

    The next page is read while one is folded, by a process of its own. What is committed meanwhile is folded too, as
    far as it is seen; the projection goes on from there.

    Raises:
        BeingRebuilt, HistoryAway, NotWritten, EventStoreError: the old one stays as it is.
    """
    head = await store.head()
    began = told = time.monotonic()
    events, cursor = 0, None
    async with history.anew() as anew:
        async for recorded in pages(store, None, limit=page):
            await anew.add(recorded)
            events, cursor = events + len(recorded), recorded[-1].position
            now = time.monotonic()
            if now - told >= _TELL_S:
                told = now
                yield Progress(events=events, position=cursor, head=head, seconds=now - began, done=False)
        await anew.replace()
    yield Progress(events=events, position=cursor, head=head, seconds=time.monotonic() - began, done=True)
