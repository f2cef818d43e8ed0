"""An outbox and a log in this process's memory: for tests, and as the plainest back ends."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress

from distroml.events import Recorded, matches
from distroml.eventstore.log import Place
from distroml.eventstore.relay.core import end_of
from distroml.eventstore.relay.port import LogMoved, OutboxEntry, OutboxTrimmed, Page, Tail
from distroml.statestore.wake import Wake


class MemoryOutbox:
    """`Outbox` as a list. See the port for what it promises."""

    def __init__(self) -> None:
        self._entries: list[OutboxEntry] = []
        self._newest = 0
        self._trimmed = 0
        self._wake = Wake()

    def add(self, entry: OutboxEntry) -> None:
        """Take a commit; raises `ValueError` where its revision does not rise or it has no event."""
        if entry.revision <= self._newest or not entry.events:
            raise ValueError(f"entry {entry.revision} after {self._newest}: revisions rise, and each has events")
        self._entries.append(entry)
        self._newest = entry.revision
        self._wake.notify()

    @property
    def trimmed(self) -> int:
        """Up to where commits have left."""
        return self._trimmed

    def told(self, *, after: int, limit: int) -> Sequence[OutboxEntry] | None:
        """What `pending` would find; None where it was trimmed past that."""
        return None if after < self._trimmed else self._after(after, limit)

    async def pending(self, *, after: int, limit: int) -> Sequence[OutboxEntry]:
        """The next commits after a revision; raises `OutboxTrimmed`."""
        if after < self._trimmed:
            raise OutboxTrimmed(after, self._trimmed)
        return self._after(after, limit)

    async def wait(self, *, after: int, timeout_s: float) -> None:
        """Return when there is something after a revision, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._newest <= after:
                    await self._wake.past(self._wake.count)

    async def trim(self, *, up_to: int) -> None:
        """Let go of commits; an `up_to` past the newest one counts for those that are there."""
        self._trimmed = max(self._trimmed, min(up_to, self._newest))
        self._entries = [entry for entry in self._entries if entry.revision > self._trimmed]

    def _after(self, revision: int, limit: int) -> Sequence[OutboxEntry]:
        start = bisect_right(self._entries, revision, key=lambda entry: entry.revision)
        return self._entries[start : start + limit]


class MemoryLog:
    """`Log` and `Pages` as a list. See the port for what it promises."""

    def __init__(self) -> None:
        self.events: list[Recorded] = []
        self.begins: Place | None = None
        self.whole = False
        self._made = 1

    async def tail(self) -> Tail:
        """Where the log ends now."""
        return self._tail()

    async def publish(self, tail: Tail, previous: Place, events: Sequence[Recorded]) -> Tail:
        """Append events one by one, giving way to others in between as a server would; raises `LogMoved`."""
        revisions = [recorded.position.revision for recorded in events]
        for recorded, following in zip(events, [*revisions[1:], None], strict=True):
            if self._tail() != tail:
                raise LogMoved(f"the log ends at {self._tail()}, expected {tail}")
            if not self.events:
                self.begins = previous
            self.events.append(recorded)
            self.whole = following != recorded.position.revision
            tail = self._tail()
            await asyncio.sleep(0)
        return tail

    async def reach(self) -> tuple[Place, Place] | None:
        """After which place the log begins, and the place of its last event."""
        last = self._tail().place
        if last is None or self.begins is None:
            return None
        return self.begins, end_of(last[0]) if self.whole else last

    async def read(self, after: Place, patterns: Sequence[str], limit: int) -> Page | None:
        """Selected events after a place; None where the log does not reach back to it."""
        reach = await self.reach()
        if reach is None or reach[0] > after:
            return None
        found: list[Recorded] = []
        for recorded in self.events:
            place = recorded.position.revision, recorded.position.index
            if place > after and (not patterns or any(matches(pattern, recorded.stream) for pattern in patterns)):
                found.append(recorded)
                if len(found) == limit:
                    return Page(tuple(found), place)
        return Page(tuple(found), max(after, reach[1]))

    async def read_stream(self, stream: str, after: int, limit: int) -> Sequence[Recorded]:
        """Events of one stream."""
        return [recorded for recorded in self.events if recorded.stream == stream and recorded.version > after][:limit]

    def delete(self) -> None:
        """Lose everything, as when a stream is deleted; the next log is another incarnation."""
        self.events, self.begins = [], None
        self._made += 1

    def _tail(self) -> Tail:
        last = self.events[-1].position if self.events else None
        return Tail(str(self._made), len(self.events), None if last is None else (last.revision, last.index))
