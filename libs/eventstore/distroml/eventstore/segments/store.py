"""The sealed copy of the log: segments in an object store, written whole, and verified whenever they are read.

A crash at any point leaves a readable log: a segment is one object, put atomically under a name that no other
content has, and what a segment holds leaves the outbox only after the put returned. No conditional put is needed, so
any S3 will do.

A segment is sealed together with the small ones before it, and others that stayed small with one another, as `merging`
says; those leave the store when the next one is sealed. Who knew them only looks again, and finds the one that stands
for them.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import TypeVar

from distroml.events import Recorded
from distroml.eventstore.errors import on_objects
from distroml.eventstore.port import EventStoreError, StoreDamaged
from distroml.eventstore.relay.core import size_of
from distroml.eventstore.relay.port import OutboxEntry
from distroml.eventstore.segments import merging
from distroml.eventstore.segments.chain import chain, extended
from distroml.eventstore.segments.format import (
    BEGINNING,
    LINE_BYTES,
    Header,
    Name,
    decode,
    decode_header,
    encode,
    header_end,
)
from distroml.eventstore.segments.recent import Recent
from distroml.objectstore import NoSuchObject, ObjectStore
from distroml.statestore.failpoint import hit

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAGE = 1000
_HEADER_GUESS_BYTES = 32 * 1024
_SEGMENTS_CACHED = 4
_HEADERS_CACHED = 2048


class SegmentLog:
    """The segments of one log below one prefix of an object store.

    Its methods raise `StoreDown` and `StoreFull` for the object store's trouble, and `StoreDamaged` for bytes that
    are not what was written. May be used by several tasks of one event loop.
    """

    def __init__(
        self, objects: ObjectStore, log_id: str, *, prefix: str = "log", merge_bytes: int = merging.MOST_BYTES
    ) -> None:
        """Nothing is asked yet.

        Args:
            objects: where they are.
            log_id: of the log.
            prefix: below which they are.
            merge_bytes: what is sealed together with segments before it is at most so large, before compression.
        """
        self.log_id = log_id
        self._objects, self._prefix, self._merge_bytes = objects, f"{prefix}/{log_id}/", merge_bytes
        self._chain: list[Name] = []
        # Segments that another stands for, to be removed; None before it was looked whether a killed relay left some.
        self._replaced: list[Name] | None = None
        # Neighbours that stayed small, as they were when that was looked.
        self._scattered: list[list[Name]] = []
        self._bodies: Recent[tuple[OutboxEntry, ...]] = Recent(_SEGMENTS_CACHED)
        self._headers: Recent[Header] = Recent(_HEADERS_CACHED)
        self._refreshing = asyncio.Lock()

    @property
    def end(self) -> int:
        """The revision up to which the log was sealed when that was looked at last."""
        return self._chain[-1].last if self._chain else 0

    async def sealed(self) -> int:
        """The revision up to which the log is sealed now; 0 where nothing is."""
        names = await self._refreshed()
        return names[-1].last if names else 0

    async def names(self) -> Sequence[Name]:
        """The segments that are the log now, from its beginning."""
        return tuple(await self._refreshed())

    async def seal(self, after: int, entries: Sequence[OutboxEntry]) -> int:
        """Write the commits that follow revision `after`, where the log must be sealed up to; returns the new end.

        Durable when this returns. What was sealed further by somebody else meanwhile stays: the new end is theirs.
        Small segments before it are sealed anew together with it, and removed when the next one is sealed.

        Raises:
            ValueError: `after` is past the end of what is sealed, or the entries are no segment.
        """
        names = await self._refreshed()
        end = names[-1].last if names else 0
        if end > after:
            return end
        if end < after:
            raise ValueError(f"segments end at revision {end}, and cannot go on after {after}")
        size, may_merge = sum(map(size_of, entries)), await self._removed()
        small, before = await self._small(names, size) if may_merge else ([], [])
        kept = names[-len(small) - 1] if len(small) < len(names) else None
        start, previous = (kept.last, kept.link) if kept else (0, BEGINNING)
        # In a thread, for what follows waits for it: thousands of commits, compressed and hashed.
        name, data = await asyncio.to_thread(encode, self.log_id, start, previous, [*before, *entries], small)
        replaced, self._replaced = self._replaced, None  # what a put came to that failed is not known
        hit("segments.seal")
        await on_objects("segments", self._put, name, data)
        hit("segments.seal")
        self._replaced = None if replaced is None else [*replaced, *small]
        if may_merge and size < self._merge_bytes:
            # What waits is little: there is time for what lies behind.
            await self._gather()
        return name.last

    async def read(self, *, after: int) -> Sequence[OutboxEntry]:
        """The commits of one segment with revisions greater than `after`: the next ones; none at the sealed end."""

        async def next_ones() -> Sequence[OutboxEntry]:
            names = await self._reaching(after)
            at = bisect_right(names, after, key=lambda name: name.last)
            return _past(await self._body(names[at]), after) if at < len(names) else ()

        return await self._looked(next_ones)

    async def commits(self, *, after: int) -> AsyncIterator[OutboxEntry]:
        """Every sealed commit with a revision greater than `after`."""
        while entries := await self.read(after=after):
            for entry in entries:
                yield entry
            after = entries[-1].revision

    async def read_stream(self, stream: str, *, after: int, limit: int) -> list[Recorded]:
        """Sealed events of one stream with versions greater than `after`; reads only segments that hold some.

        Headers are read from the newest back to where the stream is at `after`: its age counts, not that of the log.
        """

        async def next_ones() -> list[Recorded]:
            holding: list[Name] = []
            for name in reversed(await self._refreshed()):
                first, last = (await self._header(name)).streams.get(stream, (0, 0))
                if last > after:
                    holding.append(name)
                if 0 < first <= after + 1:
                    break
            found: list[Recorded] = []
            while holding and len(found) < limit:
                known = found[-1].version if found else after
                events = (recorded for entry in await self._body(holding.pop()) for recorded in entry.events)
                found += [recorded for recorded in events if recorded.stream == stream and recorded.version > known]
            return found[:limit]

        return await self._looked(next_ones)

    async def newest(self, limit_bytes: int) -> int:
        """After which revision the newest segments hold at most `limit_bytes`, uncompressed; one at the least."""

        async def looked() -> int:
            after, total = 0, 0
            for nth, name in enumerate(reversed(await self._refreshed())):
                total += (await self._header(name)).body_bytes
                if nth and total > limit_bytes:
                    break
                after = name.after
            return after

        return await self._looked(looked)

    async def verify(self) -> list[str]:
        """Read everything again, and say of each segment that cannot be trusted why; empty where all can."""
        try:
            names = await self._refreshed(again=True)
        except StoreDamaged as error:
            return [str(error)]
        found: list[str] = []
        for name in names:
            try:
                await on_objects("segments", self._decoded, name)
            except _Missing as error:
                if name in await self._refreshed(again=True):
                    found.append(str(error))
            except StoreDamaged as error:
                found.append(str(error))
        return found

    async def _looked(self, look: Callable[[], Awaitable[T]]) -> T:
        """What `look` finds; looked again where a segment that it knew was merged into another meanwhile."""
        while True:
            try:
                return await look()
            except _Missing as error:
                if error.name in await self._refreshed(again=True):
                    raise StoreDamaged(str(error)) from error

    async def _small(self, names: Sequence[Name], size: int) -> tuple[list[Name], list[OutboxEntry]]:
        """The newest segments that are to be sealed together with commits of a size, and their commits."""
        try:
            sizes: list[int] = []
            for name in reversed(names[-merging.MOST_SEGMENTS :]):
                sizes.append((await self._header(name)).body_bytes)
                if merging.taken(sizes, size, self._merge_bytes) < len(sizes):
                    break
            small = list(names[len(names) - merging.taken(sizes, size, self._merge_bytes) :])
            commits: list[OutboxEntry] = []
            for name in small:
                commits += _past(await self._body(name), commits[-1].revision if commits else 0)
            start = names[-len(small) - 1].last if len(small) < len(names) else 0
            return small, list(_past(commits, start))
        except (StoreDamaged, _Missing) as error:
            # It is told by whoever needs it; commits that wait to be sealed need a segment of their own now.
            log.warning("small segments are not merged: %s", error)
            return [], []

    async def _gather(self) -> None:
        """Seal some neighbours that stayed small anew as one, where there are any; they are removed with the next."""
        if not self._scattered:
            return
        run = self._scattered.pop()
        try:
            if _place(await self._refreshed(), run) is None:
                return
            sizes = [(await self._header(name)).body_bytes for name in run]
            count = sum(total <= self._merge_bytes for total in accumulate(sizes))
            if count >= merging.FEWEST:
                await self._gathered(run[:count])
        except (EventStoreError, _Missing) as error:
            log.warning("segments that stayed small are not merged: %s", error)

    async def _gathered(self, run: list[Name]) -> None:
        commits: list[OutboxEntry] = []
        for name in run:
            commits += _past(await self._body(name), commits[-1].revision if commits else 0)
        first = run[0]
        commits = list(_past(commits, first.after))
        name, data = await asyncio.to_thread(encode, self.log_id, first.after, first.previous, commits, run)
        await on_objects("segments", self._put, name, data)
        if (at := _place(self._chain, run)) is not None:
            self._chain = [*self._chain[:at], name, *self._chain[at + len(run) :]]
        if self._replaced is not None:
            self._replaced += run

    async def _removed(self) -> bool:
        """Whether all segments have left that others stand for; while they do not no others are merged.

        So what is to leave is named by a segment that is there, also when this process is killed.
        """
        try:
            if self._replaced is None:
                self._replaced = await self._left_behind()
            while self._replaced:
                hit("segments.remove")
                await on_objects("segments", self._objects.delete, f"{self._prefix}{self._replaced[0]}")
                self._replaced.pop(0)
            hit("segments.remove")
        except EventStoreError as error:
            log.warning("segments that were merged cannot be removed: %s", error)
            return False
        return True

    async def _left_behind(self) -> list[Name]:
        """Segments that a relay merged and was killed before it removed them: those that the log's own ones name.

        Looks for those that stayed small, too.
        """
        names = await self._refreshed()
        used = set(names)
        found: list[Name] = []
        sizes = await on_objects("segments", self._stored, None)
        # By what they take in the store: no header has to be read for that.
        runs = merging.scattered([sizes.get(name, self._merge_bytes) for name in names], self._merge_bytes)
        self._scattered = [names[run] for run in runs]
        for name in sizes:
            at = bisect_left(names, name.last, key=lambda one: one.last)
            if name in used or at == len(names):
                continue
            with suppress(StoreDamaged, _Missing):
                if str(name) in (await self._header(names[at])).merged:
                    found.append(name)
        return found

    async def _refreshed(self, *, again: bool = False) -> list[Name]:
        async with self._refreshing:
            if again or not self._chain:
                self._chain = await on_objects("segments", self._chained) or self._chain
            elif fresh := await on_objects("segments", self._listed, self._chain[-1]):
                try:
                    self._chain = extended(self._chain, fresh)
                except StoreDamaged:
                    # The new ones may follow a segment that was beside the chain until now.
                    self._chain = await on_objects("segments", self._chained)
            return self._chain

    async def _reaching(self, after: int) -> list[Name]:
        """The chain, known as far as it takes to read on after a revision."""
        if self._chain and self._chain[-1].last > after:
            return self._chain
        return await self._refreshed()

    async def _body(self, name: Name) -> tuple[OutboxEntry, ...]:
        entries = self._bodies.get(name)
        if entries is None:
            entries = await on_objects("segments", self._decoded, name)
            self._bodies.put(name, entries)
        return entries

    async def _header(self, name: Name) -> Header:
        header = self._headers.get(name)
        if header is None:
            start = await on_objects("segments", self._get, name, 0, _HEADER_GUESS_BYTES)
            end = header_end(name, start[:LINE_BYTES])
            if end > len(start):
                start += await on_objects("segments", self._get, name, len(start), end - len(start))
            header = decode_header(name, start, self.log_id)
            self._headers.put(name, header)
        return header

    def _chained(self) -> list[Name]:
        names = self._listed(None)
        while True:
            try:
                return chain(names)
            except StoreDamaged:
                # A listing is not of one moment: it may lack a segment that came while others were listed already.
                before, names = names, self._listed(None)
                if names == before:
                    raise

    def _listed(self, after: Name | None) -> list[Name]:
        """Names of segments that sort after one, in order."""
        return list(self._stored(after))

    def _stored(self, after: Name | None) -> dict[Name, int]:
        """The same, each with the bytes that it takes."""
        found: dict[Name, int] = {}
        key = "" if after is None else f"{self._prefix}{after}"
        while page := self._objects.list(self._prefix, after=key, limit=_PAGE):
            for info in page:
                if (name := Name.parse(info.key.removeprefix(self._prefix))) is not None:
                    found[name] = info.size
            key = page[-1].key
        return found

    def _put(self, name: Name, data: bytes) -> None:
        self._objects.put(f"{self._prefix}{name}", data)

    def _decoded(self, name: Name) -> tuple[OutboxEntry, ...]:
        return decode(name, self._get(name, 0, None), self.log_id)

    def _get(self, name: Name, offset: int, length: int | None) -> bytes:
        try:
            return self._objects.get(f"{self._prefix}{name}", offset=offset, length=length)
        except NoSuchObject as error:
            raise _Missing(name) from error


class _Missing(Exception):
    """A segment is not where the listing said that it is: it was merged into another since, or lost."""

    def __init__(self, name: Name) -> None:
        super().__init__(
            f"segment {name} is missing; bring the object back from a copy or an older version of the bucket"
        )
        self.name = name


def _place(names: Sequence[Name], run: Sequence[Name]) -> int | None:
    """Where in a chain these follow one another."""
    at = bisect_left(names, run[0].last, key=lambda name: name.last)
    return at if list(names[at : at + len(run)]) == list(run) else None


def _past(entries: Sequence[OutboxEntry], revision: int) -> Sequence[OutboxEntry]:
    """Those of rising revisions that come after one."""
    return entries[bisect_right(entries, revision, key=lambda entry: entry.revision) :]
