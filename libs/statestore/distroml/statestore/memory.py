"""Everything in this process's memory: for `distroml demo`, tests of services, and as the plainest back end.

Same rules as the durable back ends; only durability is missing. Usable from several event loops and threads.
"""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from distroml.events import fresh_id
from distroml.statestore import keyspace
from distroml.statestore.liveness import SWEEP_INTERVAL_S, Clock, Judge, Lease, SystemClock
from distroml.statestore.port import Change, Compacted, Entry, StateStoreDown
from distroml.statestore.store import TableStateStore
from distroml.statestore.tables import CHANGE_BYTES_KEPT, CHANGES_KEPT
from distroml.statestore.wake import Wake

R = TypeVar("R")
X = TypeVar("X")


class MemoryTables:
    """The key space as dictionaries. The rules check before they write, so nothing has to be undone."""

    def __init__(self, changes_kept: int) -> None:
        self.revision = 0
        self._entries: dict[str, Entry] = {}
        self._keys: list[str] = []
        self._leases: dict[str, Lease] = {}
        self._changes: deque[Change] = deque()
        self._changes_kept, self._change_bytes = changes_kept, 0
        self._compacted = 0
        self._extensions: dict[type[object], object] = {}

    def extension(self, kind: type[X]) -> X:
        """The one `kind` that lives beside these tables (the event log's), made on first use."""
        found = self._extensions.get(kind)
        if not isinstance(found, kind):
            found = self._extensions[kind] = kind()
        return found

    def advance(self) -> int:
        """The next revision."""
        self.revision += 1
        return self.revision

    def entry(self, key: str) -> Entry | None:
        """The entry of `key`."""
        return self._entries.get(key)

    def entries(self, prefix: str) -> list[Entry]:
        """Entries below `prefix`, in key order."""
        found: list[Entry] = []
        for i in range(bisect_left(self._keys, prefix), len(self._keys)):
            if not self._keys[i].startswith(prefix):
                break
            found.append(self._entries[self._keys[i]])
        return found

    def put(self, entry: Entry) -> None:
        """Write an entry and log the change."""
        if entry.key not in self._entries:
            insort(self._keys, entry.key)
        self._entries[entry.key] = entry
        self._log(Change(entry.key, entry.value, entry.revision))

    def remove(self, key: str, revision: int) -> None:
        """Delete an entry that exists and log the change."""
        del self._entries[key]
        del self._keys[bisect_left(self._keys, key)]
        self._log(Change(key, None, revision))

    def bound(self, lease: str) -> list[str]:
        """Keys bound to a lease, in order."""
        return [key for key in self._keys if self._entries[key].lease == lease]

    def lease(self, id: str) -> Lease | None:
        """The lease, or None where it is dead."""
        return self._leases.get(id)

    def leases(self) -> list[Lease]:
        """Every living lease."""
        return list(self._leases.values())

    def put_lease(self, lease: Lease) -> None:
        """Write a lease."""
        self._leases[lease.id] = lease

    def drop_lease(self, id: str) -> None:
        """Forget a lease."""
        self._leases.pop(id, None)

    def changes(self, prefix: str, after: int, limit: int) -> Sequence[Change]:
        """Changes after a revision, oldest first, whole revisions only; raises `Compacted`."""
        if after < self._compacted:
            raise Compacted(f"changes up to revision {self._compacted} are no longer kept; asked after {after}")
        found: list[Change] = []
        for change in self._changes:
            if change.revision > after and change.key.startswith(prefix):
                if len(found) >= limit and found[-1].revision != change.revision:
                    break
                found.append(change)
        return found

    def _log(self, change: Change) -> None:
        self._changes.append(change)
        self._change_bytes += len(change.value or b"")
        while len(self._changes) > self._changes_kept or self._change_bytes > CHANGE_BYTES_KEPT:
            old = self._changes.popleft()
            self._change_bytes -= len(old.value or b"")
            self._compacted = old.revision


class MemoryDatabase:
    """The memory back end that an event store and a state store share."""

    def __init__(
        self, log_id: str = "", *, clock: Clock | None = None, sweep: bool = True, changes_kept: int = CHANGES_KEPT
    ) -> None:
        self.log_id = log_id or fresh_id("dep")
        self.clock: Clock = clock or SystemClock()
        self.wake = Wake()
        self.closed = False
        self.trouble = ""
        self._users = 0
        self._sweeps = sweep
        self._tables = MemoryTables(changes_kept)
        self._judge = Judge(self.clock.boot, self.clock.monotonic())
        self._lock = threading.Lock()
        self._sweeper: threading.Thread | None = None
        self._ended = threading.Event()

    def join(self) -> None:
        """Count one more user, who will call `close`."""
        self._users += 1

    async def read(self, run: Callable[[MemoryTables], R]) -> R:
        """Run over the tables."""
        self._check_open()
        with self._lock:
            return run(self._tables)

    async def write(self, run: Callable[[MemoryTables], R]) -> R:
        """Run over the tables; rules raise before they write."""
        self._check_open()
        with self._lock:
            result = run(self._tables)
            if self._sweeps and self._sweeper is None and self._tables.leases():
                self._sweeper = threading.Thread(target=self._sweep_forever, name="memory-sweeper", daemon=True)
                self._sweeper.start()
        self.wake.notify()
        # Other coroutines get their turn, as they would while a durable back end writes.
        await asyncio.sleep(0)
        return result

    async def sweep(self) -> None:
        """Expire leases that are over."""
        self._sweep()

    async def close(self) -> None:
        """Refuse everything once the last user closes."""
        self._users -= 1
        if self._users > 0:
            return
        self.closed = True
        self._ended.set()
        self.wake.notify()
        if self._sweeper is not None:
            await asyncio.to_thread(self._sweeper.join)

    def _sweep(self) -> None:
        with self._lock:
            expired = keyspace.expire(self._tables, self.clock, self._judge)
        if expired:
            self.wake.notify()

    def _sweep_forever(self) -> None:
        while not self._ended.wait(SWEEP_INTERVAL_S):
            self._sweep()

    def _check_open(self) -> None:
        if self.closed:
            raise StateStoreDown("the store is closed")


def open_state_store(database: MemoryDatabase | None = None) -> TableStateStore:
    """A state store in memory; give it the event store's database to share keys and revisions."""
    database = database or MemoryDatabase()
    database.join()
    return TableStateStore(database)
