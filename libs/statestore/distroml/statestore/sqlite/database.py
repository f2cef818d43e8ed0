"""One SQLite file as the back end of an event store and a state store, shared by several processes."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from distroml.statestore import keyspace
from distroml.statestore.liveness import SWEEP_INTERVAL_S, Clock, Judge, SystemClock
from distroml.statestore.port import StateStoreDown, StateStoreError
from distroml.statestore.sqlite.errors import translate
from distroml.statestore.sqlite.locks import WriteLock
from distroml.statestore.sqlite.schema import connect, prepare
from distroml.statestore.sqlite.tables import SqliteTables
from distroml.statestore.sqlite.writer import Writer
from distroml.statestore.tables import CHANGES_KEPT
from distroml.statestore.wake import Wake

R = TypeVar("R")

READERS = 3
POLL_INTERVAL_S = 0.03
"""How often another process's commit is looked for; one look costs 6 µs and the wake-up more."""

_shared: dict[Path, SqliteDatabase] = {}
_shared_lock = threading.Lock()


class SqliteDatabase:
    """Transactions on one file: writes by one thread in groups, reads by a few threads from snapshots."""

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        log_id: str = "",
        clock: Clock | None = None,
        sweep: bool = True,
        changes_kept: int = CHANGES_KEPT,
    ) -> None:
        """Open the file for one user of it; see `share` for the usual way.

        Raises:
            StateStoreDamaged, StateStoreDown, StateStoreFull: see `schema.prepare`.
        """
        self.path = path
        self.clock: Clock = clock or SystemClock()
        self.wake = Wake()
        self.closed = False
        self._users = 1
        try:
            self._lock = WriteLock(path)
        except OSError as error:
            raise translate(path, error) from error
        try:
            with self._lock.held():
                self.log_id = prepare(path, create=create, log_id=log_id)
        except StateStoreError:
            self._lock.close()
            raise
        self._judge = Judge(self.clock.boot, self.clock.monotonic())
        self._judging = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="sqlite-reader")
        self._writer = Writer(path, self._lock, changes_kept, self.wake.notify)
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, args=(sweep,), name="sqlite-pulse", daemon=True)
        self._pulse.start()

    @property
    def trouble(self) -> str:
        """Why this process's last write failed, whatever it was; empty where it did not."""
        return self._writer.trouble

    @classmethod
    def share(cls, path: Path | str, *, create: bool = True, log_id: str = "") -> SqliteDatabase:
        """The process's one database of this file, opened by its first user and closed by its last."""
        path = Path(path).resolve()
        with _shared_lock:
            found = _shared.get(path)
            if found is None:
                found = _shared[path] = cls(path, create=create, log_id=log_id)
            elif log_id and found.log_id != log_id:
                raise StateStoreDown(f"{path} belongs to deployment {found.log_id!r}, not {log_id!r}")
            else:
                found.join()
            return found

    def join(self) -> None:
        """Count one more user, who will call `close`."""
        self._users += 1

    async def read(self, run: Callable[[SqliteTables], R]) -> R:
        """Run over one committed snapshot, in a reader thread; writers are not waited for."""
        return await asyncio.get_running_loop().run_in_executor(self._executor(), self._read, run)

    async def write(self, run: Callable[[SqliteTables], R]) -> R:
        """Run as one transaction, durable on return; where `run` raises, nothing of it is written.

        Raises:
            StateStoreFull, StateStoreDamaged, StateStoreDown: as the port says, besides what `run` raises.
        """
        return await self._writer.write(run)

    async def sweep(self) -> None:
        """Expire leases that are over, now instead of at the next sweep."""
        await asyncio.get_running_loop().run_in_executor(self._executor(), self._sweep)

    async def close(self) -> None:
        """End the threads once the last user closes; what was accepted is written before."""
        with _shared_lock:
            self._users -= 1
            if self._users > 0 or self.closed:
                return
            self.closed = True
            if _shared.get(self.path) is self:
                del _shared[self.path]
        self.wake.notify()
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._ended.set()
        self._pulse.join()
        self._readers.shutdown()
        for connection in self._connections:
            connection.close()
        self._writer.close()
        self._lock.close()

    def _executor(self) -> ThreadPoolExecutor:
        if self.closed:
            raise StateStoreDown(f"{self.path}: the store is closed")
        return self._readers

    def _read(self, run: Callable[[SqliteTables], R]) -> R:
        try:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = connect(self.path, writes=False)
                self._connections.append(connection)
            connection.execute("BEGIN")
            try:
                return run(SqliteTables(connection))
            finally:
                connection.execute("ROLLBACK")
        except (sqlite3.Error, OSError) as error:
            raise translate(self.path, error) from error

    def _sweep(self) -> None:
        with self._judging:
            leases = self._read(lambda tables: tables.leases())
            # The judge looks again inside the transaction: waiting for the write lock may have been a stand-still.
            if self._judge.sweep(self.clock.monotonic(), leases):
                self._writer.write_blocking(lambda tables: keyspace.expire(tables, self.clock, self._judge))

    def _beat(self, sweep: bool) -> None:
        """Notice other processes' commits, and sweep leases, until the end."""
        connection = connect(self.path, writes=False)
        seen, next_sweep = -1, 0.0
        while not self._ended.wait(POLL_INTERVAL_S):
            try:
                (version,) = connection.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    self.wake.notify()
                if sweep and (now := self.clock.monotonic()) >= next_sweep:
                    next_sweep = now + SWEEP_INTERVAL_S
                    self._sweep()
            except (sqlite3.Error, StateStoreError):
                # The next beat tries again; callers meet the same trouble in their own reads and writes.
                self._ended.wait(SWEEP_INTERVAL_S)
        connection.close()
