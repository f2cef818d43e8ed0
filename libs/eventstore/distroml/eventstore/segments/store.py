"""The sealed copy of the log: segments in an object store, written whole, and verified whenever they are read.

A crash at any point leaves a readable log: a segment is one object, put atomically under a name that no other
content has, and what a segment holds leaves the outbox only after the put returned. No conditional put is needed, so
any S3 will do.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Generic, TypeVar

from distroml.events import Recorded
from distroml.eventstore.errors import on_objects
from distroml.eventstore.port import StoreDamaged
from distroml.eventstore.relay.port import OutboxEntry
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
from distroml.objectstore import NoSuchObject, ObjectStore
from distroml.statestore.failpoint import hit

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

    def __init__(self, objects: ObjectStore, log_id: str, *, prefix: str = "log") -> None:
        self.log_id = log_id
        self._objects, self._prefix = objects, f"{prefix}/{log_id}/"
        self._chain: list[Name] = []
        self._bodies: _Recent[tuple[OutboxEntry, ...]] = _Recent(_SEGMENTS_CACHED)
        self._headers: _Recent[Header] = _Recent(_HEADERS_CACHED)
        self._refreshing = asyncio.Lock()

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

        Raises:
            ValueError: `after` is past the end of what is sealed, or the entries are no segment.
        """
        names = await self._refreshed()
        end = names[-1].last if names else 0
        if end > after:
            return end
        if end < after:
            raise ValueError(f"segments end at revision {end}, and cannot go on after {after}")
        previous = names[-1].link if names else BEGINNING
        # In a thread, for what follows waits for it: thousands of commits, compressed and hashed.
        name, data = await asyncio.to_thread(encode, self.log_id, after, previous, entries)
        hit("segments.seal")
        await on_objects("segments", self._put, name, data)
        hit("segments.seal")
        return name.last

    async def read(self, *, after: int) -> Sequence[OutboxEntry]:
        """The commits of one segment with revisions greater than `after`: the next ones; none at the sealed end."""
        names = await self._reaching(after)
        at = bisect_right(names, after, key=lambda name: name.last)
        if at == len(names):
            return ()
        entries = await self._body(names[at])
        return entries[bisect_right(entries, after, key=lambda entry: entry.revision) :]

    async def commits(self, *, after: int) -> AsyncIterator[OutboxEntry]:
        """Every sealed commit with a revision greater than `after`."""
        while entries := await self.read(after=after):
            for entry in entries:
                yield entry
            after = entries[-1].revision

    async def read_stream(self, stream: str, *, after: int, limit: int) -> list[Recorded]:
        """Sealed events of one stream with versions greater than `after`; reads only segments that hold some."""
        found: list[Recorded] = []
        for name in await self._refreshed():
            if len(found) >= limit:
                break
            _, last = (await self._header(name)).streams.get(stream, (0, 0))
            if last > after:
                events = (recorded for entry in await self._body(name) for recorded in entry.events)
                found += [recorded for recorded in events if recorded.stream == stream and recorded.version > after]
        return found[:limit]

    async def newest(self, limit_bytes: int) -> int:
        """After which revision the newest segments hold at most `limit_bytes`, uncompressed; one at the least."""
        after, total = 0, 0
        for nth, name in enumerate(reversed(await self._refreshed())):
            total += (await self._header(name)).body_bytes
            if nth and total > limit_bytes:
                break
            after = name.after
        return after

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
            except StoreDamaged as error:
                found.append(str(error))
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
        return chain(self._listed(None))

    def _listed(self, after: Name | None) -> list[Name]:
        """Names of segments that sort after one, in order."""
        found: list[Name] = []
        key = "" if after is None else f"{self._prefix}{after}"
        while page := self._objects.list(self._prefix, after=key, limit=_PAGE):
            names = (Name.parse(info.key.removeprefix(self._prefix)) for info in page)
            found += [name for name in names if name is not None]
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
            raise StoreDamaged(
                f"segment {name} is missing; bring the object back from a copy or an older version of the bucket"
            ) from error


class _Recent(Generic[T]):
    """The values used last, by name."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Name, T] = OrderedDict()

    def get(self, name: Name) -> T | None:
        if name in self._values:
            self._values.move_to_end(name)
        return self._values.get(name)

    def put(self, name: Name, value: T) -> None:
        self._values[name] = value
        while len(self._values) > self._size:
            self._values.popitem(last=False)
