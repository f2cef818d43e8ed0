"""Reading the JetStream log by positions: pages of events, in order, and never a gap taken for an end.

A stream lets go of its oldest messages while it is read, and a query whose first message is gone begins with the next
one that is there; and of a cluster any replica may answer it, one that is a moment behind as well. So an answer counts
from the message that was asked for, up to the last one that came. What comes before or after, the leader is asked for.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from distroml.events import Recorded, matches
from distroml.eventstore.jetstream import subjects
from distroml.eventstore.jetstream.direct import Query
from distroml.eventstore.jetstream.stream import JetStreamLog, Stored
from distroml.eventstore.log import Place
from distroml.eventstore.port import StoreDown
from distroml.eventstore.relay.port import LogMoved, Page

_BATCH = 4096
"""Messages of one answer: the server counts what is left once for each, and sends while we decode."""

_HINTS = 256
_LOOK_S = 1.0


class JetStreamReader:
    """Pages of one log.

    Its methods raise `LogMoved` where the stream was deleted or made anew while they read, and the errors of
    `JetStreamLog.tail`. May be used by several tasks of one event loop.
    """

    def __init__(self, log: JetStreamLog, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._log, self._monotonic = log, monotonic
        # Which making of the stream was there, and when that was looked at last.
        self._looked = "", 0.0
        # Sequences of places, and of versions of streams, that a reader stands at; without one it is searched for.
        self._hints: OrderedDict[tuple[str, Place | tuple[str, int]], int] = OrderedDict()

    async def reach(self) -> tuple[Place, Place] | None:
        """After which place the stream begins, and the place of its last event; None where it has none."""
        info = await self._log.info()
        if info is None or not info.state.messages:
            return None
        incarnation = self._log.incarnation(info)
        first = await self._event(incarnation, info.state.first_seq)
        last = await self._event(incarnation, info.state.last_seq)
        return first.previous, last.through

    async def read(self, after: Place, patterns: Sequence[str], limit: int) -> Page | None:
        """At most `limit` selected events after a place; None where the stream does not reach back to it (any more)."""
        return await self._next(after, patterns, limit) or await self._looked_up(after, patterns, limit)

    async def _next(self, after: Place, patterns: Sequence[str], limit: int) -> Page | None:
        """What follows a place that was read up to lately, by one question; None where that finds nothing.

        A stream that was deleted and made anew meanwhile has no such subject, and is found by looking it up.
        """
        incarnation, looked_s = self._looked
        hint = self._hints.get((incarnation, after))
        if hint is None or self._monotonic() > looked_s + _LOOK_S:
            return None
        query = Query(hint + 1, min(_BATCH, limit), self._selection(incarnation, patterns))
        batch = await self._log.fetch(query)
        found = _selected(batch, patterns)
        if not found or not await self._begins(incarnation, query, batch):
            return None
        self._remember(incarnation, batch[-1].through, batch[-1].sequence)
        return Page(tuple(one.recorded for one in found), batch[-1].through)

    async def _looked_up(self, after: Place, patterns: Sequence[str], limit: int) -> Page | None:
        looked_s = self._monotonic()
        info = await self._log.info()
        if info is None or not info.state.messages:
            return None
        incarnation = self._log.incarnation(info)
        first, last = info.state.first_seq, info.state.last_seq
        end = await self._event(incarnation, last)
        through = max(after, end.through)
        if end.through < after:
            # The stream is being filled again, and not there yet.
            return Page((), after)
        start = last + 1 if end.place <= after else await self._sequence_after(incarnation, after, first, last)
        if start == first and (await self._event(incarnation, first)).previous > after:
            return None
        selection = self._selection(incarnation, patterns)
        found: list[Stored] = []
        reached: Stored | None = None
        while start <= last and len(found) < limit:
            query = Query(start, min(_BATCH, last + 1 - start, limit - len(found)), selection)
            batch = [one for one in await self._log.fetch(query) if one.sequence <= last]
            if not await self._begins(incarnation, query, batch):
                return None
            if not batch:
                break
            reached = batch[-1]
            start = reached.sequence + 1
            found += _selected(batch, patterns)
        if len(found) == limit:
            through, last = found[-1].place, found[-1].sequence
        elif reached is not None:
            through, last = max(after, reached.through), reached.sequence
        else:
            await self._check_none(start, last, selection)
        self._looked = incarnation, looked_s
        self._remember(incarnation, through, last)
        return Page(tuple(one.recorded for one in found), through)

    async def read_stream(self, stream: str, after: int, limit: int) -> list[Recorded]:
        """Events of one stream with versions greater than `after`; the first one may be later than the next version."""
        info = await self._log.info()
        if info is None or not info.state.messages:
            return []
        incarnation = self._log.incarnation(info)
        selection = subjects.subject(subjects.root(self._log.log_id, incarnation), stream)
        start = max(info.state.first_seq, self._hints.get((incarnation, (stream, after)), 0) + 1)
        found: list[Recorded] = []
        reached = 0
        while len(found) < limit and (batch := await self._log.fetch(Query(start, _BATCH, selection))):
            start = batch[-1].sequence + 1
            for one in batch:
                if one.recorded.version > after and len(found) < limit:
                    found.append(one.recorded)
                    reached = one.sequence
        if len(found) < limit:
            await self._check_none(start, info.state.last_seq, selection)
        if found:
            self._remember(incarnation, (stream, found[-1].version), reached)
        return found

    async def _sequence_after(self, incarnation: str, after: Place, first: int, last: int) -> int:
        """The sequence of the first event after a place; that of `last` is known to be after it."""
        hint = self._hints.get((incarnation, after))
        if hint is not None and first <= hint + 1:
            return hint + 1
        # Readers are near the end more often than not: from there backwards in growing steps, then by halves.
        low, high, step = first, last, 1
        while high > first:
            probe = max(first, high - step)
            if (await self._event(incarnation, probe)).place <= after:
                low = probe + 1
                break
            high, step = probe, 2 * step
        while low < high:
            middle = (low + high) // 2
            if (await self._event(incarnation, middle)).place > after:
                high = middle
            else:
                low = middle + 1
        return low

    async def _begins(self, incarnation: str, query: Query, batch: Sequence[Stored]) -> bool:
        """Whether nothing that the query asked for had left the stream before it was answered."""
        if batch and batch[0].sequence == query.sequence:
            return True
        info = await self._log.info()
        if info is None or self._log.incarnation(info) != incarnation:
            raise LogMoved(f"the stream {self._log.name} was deleted while it was read")
        return info.state.first_seq <= query.sequence

    async def _check_none(self, start: int, last: int, selection: str) -> None:
        """Raise `StoreDown` where something stands between two sequences that a query did not find."""
        at = await self._log.next(start, selection) if start <= last else None
        if at is not None and at <= last:
            raise StoreDown(f"a replica of {self._log.name} has not reached sequence {at} yet: read again")

    async def _event(self, incarnation: str, sequence: int) -> Stored:
        found = await self._log.event(incarnation, sequence)
        if found is None:
            raise LogMoved(f"the stream {self._log.name} has no event {sequence} any more")
        return found

    def _selection(self, incarnation: str, patterns: Sequence[str]) -> str:
        return subjects.selection(subjects.root(self._log.log_id, incarnation), patterns)

    def _remember(self, incarnation: str, mark: Place | tuple[str, int], sequence: int) -> None:
        self._hints[incarnation, mark] = sequence
        self._hints.move_to_end((incarnation, mark))
        while len(self._hints) > _HINTS:
            self._hints.popitem(last=False)


def _selected(batch: Sequence[Stored], patterns: Sequence[str]) -> list[Stored]:
    """What the patterns select of what the server found, which may be more."""
    if not patterns:
        return list(batch)
    return [one for one in batch if any(matches(pattern, one.recorded.stream) for pattern in patterns)]
