"""History in a SQLite file of its own: the embedded default. One process writes it, and so it always leads."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Self, TypeVar

from distroml.telemetry.adapters.database import Layout
from distroml.telemetry.adapters.sqlitefile import SqliteFile
from distroml.telemetry.history.anew import AnewByProcess
from distroml.telemetry.history.building import ToSqlite
from distroml.telemetry.history.db import Db, Rows
from distroml.telemetry.history.port import Anew, BeingRebuilt
from distroml.telemetry.history.sql import SqlHistory

R = TypeVar("R")

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('cursor', '');
CREATE TABLE versions (stream TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (
  job TEXT PRIMARY KEY, project TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
  submitted_ms INTEGER NOT NULL, finished_ms INTEGER NOT NULL, revision INTEGER NOT NULL, attempt INTEGER NOT NULL,
  slots INTEGER NOT NULL, slots_since_ms INTEGER NOT NULL, view BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_by_age ON jobs (submitted_ms DESC, job);
CREATE INDEX jobs_by_state ON jobs (state, submitted_ms DESC, job);
CREATE INDEX jobs_by_revision ON jobs (revision);
CREATE INDEX jobs_that_hold ON jobs (job) WHERE slots > 0;
CREATE TABLE events (
  job TEXT NOT NULL, revision INTEGER NOT NULL, idx INTEGER NOT NULL, type TEXT NOT NULL,
  schema INTEGER NOT NULL, stream TEXT NOT NULL, version INTEGER NOT NULL, at_ms INTEGER NOT NULL,
  actor TEXT NOT NULL, generation INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (job, revision, idx)
) WITHOUT ROWID;
CREATE TABLE plans (
  job TEXT PRIMARY KEY, generation INTEGER NOT NULL, type TEXT NOT NULL, schema INTEGER NOT NULL, data BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE slot_times (
  job TEXT NOT NULL, project TEXT NOT NULL, day INTEGER NOT NULL, attempt INTEGER NOT NULL, slots INTEGER NOT NULL,
  since_ms INTEGER NOT NULL, until_ms INTEGER NOT NULL, PRIMARY KEY (job, since_ms)
) WITHOUT ROWID;
CREATE INDEX slot_times_by_day ON slot_times (day, project);
CREATE TABLE rollups (
  job TEXT NOT NULL, metric TEXT NOT NULL, width_ms INTEGER NOT NULL, start_ms INTEGER NOT NULL, n INTEGER NOT NULL,
  total REAL NOT NULL, low REAL NOT NULL, high REAL NOT NULL, last REAL NOT NULL, last_ms INTEGER NOT NULL,
  step INTEGER NOT NULL, generation INTEGER NOT NULL, PRIMARY KEY (job, metric, width_ms, start_ms)
) WITHOUT ROWID;
CREATE INDEX rollups_by_age ON rollups (width_ms, start_ms);
CREATE TABLE rollup_writers (writer TEXT PRIMARY KEY, sequence INTEGER NOT NULL, at_ms INTEGER NOT NULL) WITHOUT ROWID;
"""
LAYOUT = Layout(format=1, schema=_SCHEMA)


class SqliteHistory(SqlHistory):
    """`History` in the file at `path`."""

    name = "sqlite"

    def __init__(self, path: Path, *, max_events: int) -> None:
        super().__init__(max_events=max_events)
        self._file = SqliteFile(path, LAYOUT, on_reset=self._folder.reset)

    async def __aenter__(self) -> Self:
        await self._file.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._file.__aexit__()

    async def lead(self, who: str, ttl_s: float) -> bool:
        """Always: the file is this process's."""
        return True

    @asynccontextmanager
    async def anew(self) -> AsyncGenerator[Anew]:
        """In a file next to this one, which a lock keeps others from."""
        building = self._file.path.with_suffix(".building.sqlite")
        with _locked(building.with_suffix(".lock")):
            # What a service that was killed has left.
            _remove(building)
            try:
                async with AnewByProcess(
                    ToSqlite(str(building)), max_events=self.max_events, replace=lambda: self._replace_by(building)
                ) as anew:
                    yield anew
            finally:
                _remove(building)

    async def _replace_by(self, new: Path) -> None:
        """The roll-ups are copied, then the new file takes the name of the old one.

        A crash in between leaves one of the two, whole.
        """
        old = self._file.path

        def swap() -> None:
            with closing(sqlite3.connect(new, isolation_level=None)) as db:
                db.execute("ATTACH ? AS old", (str(old),))
                db.execute("BEGIN IMMEDIATE")
                for table in ("rollups", "rollup_writers"):
                    db.execute(f"INSERT INTO main.{table} SELECT * FROM old.{table}")
                db.execute("COMMIT")
            _remove(old, only_companions=True)
            os.replace(new, old)

        await self._file.outside(swap)

    async def _write(self, change: Callable[[Db], R]) -> R:
        return await self._file.write(lambda connection: change(SqliteDb(connection)))

    async def _read(self, query: Callable[[Db], R]) -> R:
        def in_one_state(connection: sqlite3.Connection) -> R:
            connection.execute("BEGIN")
            try:
                return query(SqliteDb(connection))
            finally:
                connection.execute("ROLLBACK")

        return await self._file.read(in_one_state)


class SqliteDb:
    """`Db` over a connection of the standard library."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, values: Sequence[object] = ()) -> Rows:
        """See the port."""
        return self._connection.execute(_translated(sql), values)

    def executemany(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """See the port."""
        self._connection.executemany(_translated(sql), rows)

    def append(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """See the port."""
        marks = ",".join("?" * len(columns))
        self._connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)

    def changed(self, rows: Rows) -> int:
        """See the port."""
        assert isinstance(rows, sqlite3.Cursor)
        return rows.rowcount


def _translated(sql: str) -> str:
    return sql.replace("%s", "?").replace("%%", "%")


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Hold the lock of a rebuild; the system lets go of it with the process. Raises `BeingRebuilt`."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BeingRebuilt("history is being rebuilt already; wait for its end") from error
        yield


def _remove(path: Path, *, only_companions: bool = False) -> None:
    if not only_companions:
        path.unlink(missing_ok=True)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
