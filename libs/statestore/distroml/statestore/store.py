"""The state store over any back end's tables."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import groupby

from distroml.statestore import keyspace
from distroml.statestore.port import Change, Entry, Listing
from distroml.statestore.tables import Database, Tables

_WATCH_BATCH = 500


class TableStateStore:
    """`StateStore` on the embedded back ends. See the port for what it promises."""

    def __init__(self, database: Database[Tables]) -> None:
        self._database = database
        self._closed = False

    async def get(self, key: str) -> Entry | None:
        """The key's committed entry."""
        return await self._database.read(lambda tables: tables.entry(key))

    async def list(self, prefix: str) -> Listing:
        """Every entry whose key starts with `prefix`."""
        return await self._database.read(lambda tables: Listing(tuple(tables.entries(prefix)), tables.revision))

    async def cas(self, key: str, value: bytes, *, expected: int, lease: str = "") -> Entry:
        """Write `key` if its revision is `expected`.

        Raises:
            CasConflict, LeaseGone: as the port says.
            ValueError: the key is malformed, or the value larger than 1 MiB.
        """
        keyspace.check_key(key)
        if len(value) > keyspace.MAX_VALUE_BYTES:
            raise ValueError(f"the value of {key!r} has {len(value)} bytes, at most {keyspace.MAX_VALUE_BYTES} fit")
        return await self._database.write(lambda tables: keyspace.cas(tables, key, value, expected, lease))

    async def delete(self, key: str, *, expected: int) -> None:
        """Remove `key` if its revision is `expected`; raises `CasConflict`."""
        await self._database.write(lambda tables: keyspace.delete(tables, key, expected))

    async def grant(self, ttl_s: int) -> str:
        """A new lease; `ttl_s` is at least 1."""
        if ttl_s < 1:
            raise ValueError(f"a lease lives for whole seconds, at least one; got {ttl_s}")
        return await self._database.write(lambda tables: keyspace.grant(tables, self._database.clock, ttl_s))

    async def keep_alive(self, lease: str) -> None:
        """Renew `lease` for a full ttl; raises `LeaseGone`."""
        await self._database.write(lambda tables: keyspace.keep_alive(tables, self._database.clock, lease))

    async def revoke(self, lease: str) -> None:
        """End `lease` at once and delete its keys."""
        await self._database.write(lambda tables: keyspace.revoke(tables, lease))

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Sequence[Change]]:
        """Changes below `prefix` after a revision, one batch per commit; raises `Compacted`."""
        while not self._closed:
            seen = self._database.wake.count
            changes, newest = await self._database.read(
                lambda tables, start=after: (tables.changes(prefix, start, _WATCH_BATCH), tables.revision)
            )
            for revision, batch in groupby(changes, key=lambda change: change.revision):
                yield tuple(batch)
                after = revision
            if not changes:
                # Nothing below the prefix up to `newest`: not to be looked through again, nor missed when compacted.
                after = max(after, newest)
                await self._database.wake.past(seen)

    async def sweep(self) -> None:
        """Expire leases that are over, now instead of at the next sweep."""
        await self._database.sweep()

    async def close(self) -> None:
        """Release what the store holds; running watches end."""
        if self._closed:
            return
        self._closed = True
        self._database.wake.notify()
        await self._database.close()
