"""Waking those who wait for changes, without polling."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator
from typing import Final

from distroml.observability import logger
from distroml.statestore import Compacted, StateStore

log = logger(__name__)

STALE_S: Final = 2.0
"""A follower looks again after this long even if nobody woke it: watches may lag."""


class Signal:
    """Something changed; every listener hears of it, several changes in a row perhaps once."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Event] = set()

    def notify(self) -> None:
        """Wake every listener."""
        for listener in self._listeners:
            listener.set()

    @contextlib.contextmanager
    def listening(self, listener: asyncio.Event | None = None) -> Generator[asyncio.Event]:
        """An event that is set at each change from now on; the listener clears it."""
        event = listener or asyncio.Event()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.discard(event)


async def heard(event: asyncio.Event, timeout_s: float = STALE_S) -> bool:
    """Wait until `event` is set, clear it, and say whether it was; at most `timeout_s`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    was_set = event.is_set()
    event.clear()
    return was_set


class Pulse:
    """Wakes listeners after each commit of any service: every commit changes some stored state."""

    def __init__(self, state: StateStore) -> None:
        self._state = state
        self.signal = Signal()

    async def run(self) -> None:
        """Until cancelled or the store is closed."""
        while True:
            # Listing a prefix without keys gives the revision to begin at.
            after = (await self._state.list("state/.none/")).revision
            self.signal.notify()
            try:
                async for _ in self._state.watch("state/", after=after):
                    self.signal.notify()
                return
            except Compacted:
                log.info("the watch on commits fell behind and begins anew")
