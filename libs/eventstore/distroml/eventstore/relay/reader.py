"""The whole log read as one: its recent part, segments before that, and the outbox after it; complete and in order.

Whatever was trimmed from the outbox is in the segments, always, and in the log unless that was lost. So the outbox is
asked after the log: either it still has everything that the log did not show, or it says that it was trimmed, and then
the segments have it. What a commit wrote is read as soon as it returned, with the log down or not. Who reads at the
end, where the outbox is at hand, is told by it alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from distroml.events import Position, Recorded, matches
from distroml.eventstore.log import Place
from distroml.eventstore.port import StoreDown
from distroml.eventstore.relay.core import BEGINNING, end_of
from distroml.eventstore.relay.cursors import Cursors
from distroml.eventstore.relay.port import LogMoved, Outbox, OutboxEntry, OutboxTrimmed, Page, Pages
from distroml.eventstore.segments import SegmentLog
from distroml.eventstore.subscription import LogSubscription
from distroml.statestore.wake import Wake

OUTBOX_PAGE_COMMITS = 512
_OVERTAKEN = 20


class LogReader:
    """`read`, `read_stream` and `subscribe` of an event store whose commits go through an outbox.

    Attributes:
        log_id: of the log.
        wake: to be notified whenever there may be new events; a subscription at the end waits for it.
        skipped: why the log's recent part was last passed over for segments and outbox; empty while it is read.
    """

    def __init__(
        self,
        log_id: str,
        outbox: Outbox,
        pages: Pages,
        segments: SegmentLog,
        cursors: Cursors,
        *,
        page_commits: int = OUTBOX_PAGE_COMMITS,
    ) -> None:
        """Nothing is asked yet.

        Args:
            log_id: see above.
            outbox: what the relay has yet to let go of.
            pages: of the log's recent part.
            segments: of all that is sealed.
            cursors: of subscriptions.
            page_commits: what the outbox is asked for at once; one that holds more is long.
        """
        self.log_id = log_id
        self.wake = Wake()
        self.skipped = ""
        self._outbox, self._pages, self._segments, self._cursors = outbox, pages, segments, cursors
        self._page_commits = page_commits
        self._closed = False
        # Up to this revision a long outbox was passed over last, for log or segments had it all; 0 where none was.
        self._passed = 0

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def read(
        self, *, after: Position | None = None, streams: Sequence[str] = (), limit: int = 1000
    ) -> Sequence[Recorded]:
        """Events after a position, oldest first; fewer than `limit` only where there are no more.

        Raises:
            ValueError: the position is another log's.
            StoreDown: as `scan`.
        """
        place, found = self.place(after), list[Recorded]()
        while len(found) < limit:
            events, place = await self.scan(place, streams, limit - len(found))
            if not events:
                break
            found += events
        return found

    async def scan(self, after: Place, streams: Sequence[str], limit: int) -> tuple[Sequence[Recorded], Place]:
        """The next selected events, and the place up to which the log was looked through for them.

        None only where there are none; else perhaps fewer than there are.

        Raises:
            StoreDown: the outbox or the segments did not answer, or were trimmed faster than they could be read.
        """
        told = self._outbox.told(after=_whole(after), limit=self._page_commits)
        if told is not None:
            page = _page(told, after, streams, limit)
        else:
            page = await self._recent(after, streams, limit) or await self._sealed(after, streams, limit)
        overtaken = 0
        while not page.events:
            try:
                entries = await self._outbox.pending(after=_whole(page.through), limit=self._page_commits)
            except OutboxTrimmed as error:
                overtaken += 1
                if overtaken > _OVERTAKEN:
                    raise StoreDown(f"reading after {after} was overtaken {overtaken} times; read again") from error
                page = await self._sealed(page.through, streams, limit)
                continue
            page = _page(entries, page.through, streams, limit)
            if len(entries) < self._page_commits:
                break
        return page.events, page.through

    async def read_stream(self, stream: str, *, after: int = 0, limit: int = 1000) -> Sequence[Recorded]:
        """Events of one stream with versions greater than `after`, oldest first, without a gap."""
        found = await self._read_stream(stream, after, limit, pass_over=True)
        if found is None:
            # Who had what was passed over has it no more, or does not answer: the outbox still has it.
            self._passed = 0
            found = await self._read_stream(stream, after, limit, pass_over=False)
        return _consecutive(found or (), after)

    async def _read_stream(self, stream: str, after: int, limit: int, *, pass_over: bool) -> Sequence[Recorded] | None:
        """Events of a stream; None where some may be missing, since a part of the outbox was passed over."""
        waiting, since, trimmed = await self._waiting(stream, after, limit, pass_over=pass_over)
        if waiting and waiting[0].version == after + 1:
            return waiting
        found, begins = await self._in_log(stream, after, limit, since)
        if begins is None or (begins > BEGINNING and not (found and found[0].version == after + 1)):
            try:
                sealed = await self._segments.read_stream(stream, after=after, limit=limit)
            except StoreDown:
                if since > trimmed:
                    return None
                raise
            end = self._segments.end
            if since > trimmed and end < since and (begins is None or end_of(end) < begins):
                return None
            found = _joined(sealed, found, after, limit)
        return _joined(found, waiting, after, limit)

    def subscribe(self, durable: str, *, streams: Sequence[str] = (), start: Position | None = None) -> LogSubscription:
        """Read on from the durable cursor of this name (from `start` where it has none yet)."""
        return LogSubscription(self, durable, tuple(streams), self.place(start))

    async def open_cursor(self, durable: str, start: Place) -> Place:
        """The cursor of a durable subscription, made at `start` where there is none."""
        return await self._cursors.open(durable, start)

    async def move_cursor(self, durable: str, position: Position) -> None:
        """Move a durable cursor forward to `position`; never back."""
        await self._cursors.move(durable, self.place(position))

    def close(self) -> None:
        """End all subscriptions."""
        self._closed = True
        self.wake.notify()

    def place(self, position: Position | None) -> Place:
        """The place of a position in this log; raises `ValueError` for another log's."""
        if position is None:
            return BEGINNING
        if position.log != self.log_id:
            raise ValueError(f"position {position} belongs to log {position.log!r}, this is {self.log_id!r}")
        return position.revision, position.index

    async def _recent(self, after: Place, streams: Sequence[str], limit: int) -> Page | None:
        """From the log itself; None where it does not reach back so far, or cannot be read now."""
        try:
            page = await self._pages.read(after, streams, limit)
        except (LogMoved, StoreDown) as error:
            self.skipped = str(error)
            return None
        self.skipped = ""
        return page

    async def _sealed(self, after: Place, streams: Sequence[str], limit: int) -> Page:
        """From segments, to their end or the limit."""
        found: list[Recorded] = []
        while len(found) < limit and (entries := await self._segments.read(after=_whole(after))):
            page = _page(entries, after, streams, limit - len(found))
            found += page.events
            after = page.through
        return Page(tuple(found), after)

    async def _waiting(
        self, stream: str, after: int, limit: int, *, pass_over: bool
    ) -> tuple[list[Recorded], int, int]:
        """Events of a stream in the outbox, after which revision it was looked through, and up to which it is trimmed.

        Of an outbox that is long, because the relay cannot let go of it, only what log and segments lack is looked at.
        """
        found: list[Recorded] = []
        revision = since = self._passed if pass_over else 0
        trimmed = 0
        while True:
            try:
                entries = await self._outbox.pending(after=revision, limit=self._page_commits)
            except OutboxTrimmed as error:
                revision = since = trimmed = error.trimmed
                found.clear()
                continue
            events = (recorded for entry in entries for recorded in entry.events)
            found += [recorded for recorded in events if recorded.stream == stream and recorded.version > after]
            if len(found) >= limit or len(entries) < self._page_commits:
                return found[:limit], since, trimmed
            revision = entries[-1].revision
            if pass_over:
                elsewhere = await self._held_elsewhere(revision)
                if pass_over := elsewhere > revision:
                    revision = since = self._passed = elsewhere
                    found.clear()

    async def _held_elsewhere(self, revision: int) -> int:
        """Up to which revision the log, or else segments, hold every commit; 0 where neither goes past `revision`."""
        with suppress(LogMoved, StoreDown):
            reach = await self._pages.reach()
            if reach is not None and (end := _whole(reach[1])) > revision:
                return end
        with suppress(StoreDown):
            if (end := await self._segments.sealed()) > revision:
                return end
        return 0

    async def _in_log(self, stream: str, after: int, limit: int, since: int) -> tuple[Sequence[Recorded], Place | None]:
        """Events of a stream in the log, and the place after which it has all up to `since`; None where it has not."""
        try:
            reach = await self._pages.reach()
            found = await self._pages.read_stream(stream, after, limit)
        except (LogMoved, StoreDown) as error:
            self.skipped = str(error)
            return [], None
        if reach is None:
            return found, None if since else BEGINNING
        begins, end = reach
        # It ends before what was trimmed only while a lost log is filled again.
        return found, begins if end >= end_of(since) else None


def _whole(place: Place) -> int:
    """The revision up to which every commit lies before a place, as far as the place alone can tell."""
    return place[0] if place >= end_of(place[0]) else max(0, place[0] - 1)


def _page(entries: Sequence[OutboxEntry], after: Place, streams: Sequence[str], limit: int) -> Page:
    """The page that whole commits make."""
    found: list[Recorded] = []
    for entry in entries:
        for recorded in entry.events:
            place = recorded.position.revision, recorded.position.index
            if place <= after or (streams and not any(matches(pattern, recorded.stream) for pattern in streams)):
                continue
            found.append(recorded)
            if len(found) == limit:
                return Page(tuple(found), place)
    return Page(tuple(found), max(after, end_of(entries[-1].revision)) if entries else after)


def _joined(low: Sequence[Recorded], high: Sequence[Recorded], after: int, limit: int) -> Sequence[Recorded]:
    """Events of one stream and those that come after them elsewhere; where `low` was cut at the limit, nothing does."""
    if len(low) >= limit:
        return low[:limit]
    last = low[-1].version if low else after
    return [*low, *(recorded for recorded in high if recorded.version > last)][:limit]


def _consecutive(events: Sequence[Recorded], after: int) -> Sequence[Recorded]:
    """The events, where their versions follow one another; raises `StoreDown` where one is not to be had now."""
    for version, recorded in enumerate(events, start=after + 1):
        if recorded.version != version:
            raise StoreDown(
                f"version {version} of {recorded.stream} is neither in the log nor in segments nor in the outbox now,"
                f" and {recorded.version} is; read again, and where it stays so run `distroml doctor`"
            )
    return events
