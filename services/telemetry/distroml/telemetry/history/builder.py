"""The process that folds a log into an empty history: whole and durable once `Finish` is answered, worthless before.

It has a core of its own: while it folds and writes, the service reads on in the log, and serves. It ends with the
service that began it.

    python -m distroml.telemetry.history.builder
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from google.protobuf.message import DecodeError

from distroml.events import UnknownEvent
from distroml.telemetry.adapters.facts import reader_of
from distroml.telemetry.domain.facts import JobFact
from distroml.telemetry.history.building import (
    LENGTH_BYTES,
    Begin,
    Done,
    Failed,
    Finish,
    Fold,
    Message,
    ToPostgres,
    ToSqlite,
    Where,
    length_of,
    message_of,
    packed,
)
from distroml.telemetry.history.db import Db
from distroml.telemetry.history.folding import EventTuple, Folder, move_cursor, prune

if TYPE_CHECKING:
    import psycopg

_STORE_AT = 8192
_COMMIT_AT = 100_000
_COPY_EVENTS = (
    "COPY events (job, revision, idx, type, schema, stream, version, at_ms, actor, generation, data) "
    "FROM STDIN (FORMAT BINARY)"
)
_EVENT_TYPES = ("text", "int8", "int4", "text", "int4", "text", "int8", "int8", "text", "int8", "bytea")
_SORT_MEMORY = "256MB"
"""What PostgreSQL may use to sort the index of events."""


class _Place(Protocol):
    """Where a history is made; `db` is inside a transaction."""

    db: Db

    def commit(self) -> None:
        """Begin another transaction; nothing needs to be durable yet."""
        ...

    def index(self) -> None:
        """Make the indexes that were left out for the sake of writing."""
        ...

    def finish(self) -> None:
        """Everything written is durable."""
        ...


class _Sqlite:
    """A file that nobody else has open, and that is thrown away after a crash."""

    def __init__(self, path: Path) -> None:
        from distroml.telemetry.history.sqlite import LAYOUT, SqliteDb

        self._path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-65536"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(f"BEGIN;{LAYOUT.schema}PRAGMA user_version={LAYOUT.format};COMMIT;BEGIN;")
        self.db: Db = SqliteDb(self._connection)

    def commit(self) -> None:
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN")

    def index(self) -> None:
        """None is left out: a table without row ids is its own index."""

    def finish(self) -> None:
        self._connection.execute("COMMIT")
        self._connection.close()
        with open(self._path, "rb") as file:
            os.fsync(file.fileno())


class _Postgres:
    """A schema with empty tables, which nobody else knows of."""

    def __init__(self, address: str, schema: str) -> None:
        import psycopg

        # Not by way of the whole history, whose tools for migrations take as long to import as everything else.
        from distroml.telemetry.history.postgresdb import PostgresDb

        # The swap that follows is durable, and everything before it with it.
        options = f"-c search_path={schema} -c synchronous_commit=off -c maintenance_work_mem={_SORT_MEMORY}"

        def connected() -> psycopg.Connection[Any]:
            return psycopg.connect(address, options=options, application_name="distroml-telemetry-rebuild")

        self._connection, self._events = connected(), connected()
        self._events.execute("ALTER TABLE events DROP CONSTRAINT events_pkey")
        self._events.commit()
        # One COPY from the first event to the last, beside the other statements: the server stores what came while
        # more is folded here. In the binary form it has a sixth less to do.
        self._copying = ExitStack()
        cursor = self._copying.enter_context(self._events.cursor())
        copy = self._copying.enter_context(cursor.copy(_COPY_EVENTS))
        copy.set_types(_EVENT_TYPES)

        class Beside(PostgresDb):
            def append(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
                for row in rows:
                    copy.write_row(row)

        self.db: Db = Beside(self._connection)

    def commit(self) -> None:
        self._connection.commit()

    def index(self) -> None:
        self._copying.close()
        self._events.commit()
        self.db.execute("ALTER TABLE events ADD PRIMARY KEY (job, revision, idx)")

    def finish(self) -> None:
        self._connection.commit()
        self._connection.close()
        self._events.close()


class Building:
    """A history on its way."""

    def __init__(self, place: _Place, max_events: int) -> None:
        self._place, self._max_events = place, max_events
        self._folder = Folder(max_events=max_events)
        self._uncommitted = 0
        self._cursor = ""

    def fold(self, message: Fold) -> int:
        """Take the next events; how many of them this release cannot read."""
        events: list[tuple[EventTuple, JobFact | None]] = []
        skipped = 0
        for row in message.rows:
            try:
                events.append((row, reader_of(row[3])(row[10])))
            except (UnknownEvent, DecodeError, ValueError):
                events.append((row, None))
                skipped += 1
        self._folder.take(self._place.db, events)
        self._cursor = message.cursor
        if self._folder.waiting >= _STORE_AT:
            self._folder.store(self._place.db)
        self._uncommitted += len(events)
        if self._uncommitted >= _COMMIT_AT:
            self._place.commit()
            self._uncommitted = 0
        return skipped

    def finish(self) -> None:
        """Write what waits, let go of events past the bound, and say where it ends."""
        db = self._place.db
        self._folder.store(db)
        self._place.index()
        counted = "SELECT job FROM events GROUP BY job HAVING count(*) > %s"
        for (job,) in db.execute(counted, (self._max_events,)).fetchall():
            prune(db, job, self._max_events)
        move_cursor(db, self._cursor)
        self._place.finish()


def _place_of(where: Where) -> _Place:
    match where:
        case ToSqlite(path=path):
            return _Sqlite(Path(path))
        case ToPostgres(address=address, schema=schema):
            return _Postgres(address, schema)


def _failed(where: Where, error: Exception) -> Failed | None:
    """What is told of trouble with the database; None where it is none."""
    match where:
        case ToSqlite(path=path):
            known = isinstance(error, sqlite3.Error | OSError)
            return Failed(f"{Path(path).name} cannot be written: {error}") if known else None
        case ToPostgres(address=address):
            import psycopg

            from distroml.rpc.postgres import place_of, trouble

            return Failed(trouble(error, place_of(address)), away=True) if isinstance(error, psycopg.Error) else None


def _messages(source: BinaryIO) -> Message | None:
    """The next message; None at the end, also in the middle of one."""
    length = source.read(LENGTH_BYTES)
    data = source.read(length_of(length))
    return cast("Message", message_of(data)) if data and len(data) == length_of(length) else None


def main() -> int:
    """Carry out messages until there are no more, or one fails."""
    source, target = sys.stdin.buffer, sys.stdout.buffer

    def answer(what: Done | Failed) -> None:
        target.write(packed(what))
        target.flush()

    begin = _messages(source)
    if not isinstance(begin, Begin):
        return 1
    try:
        building = Building(_place_of(begin.where), begin.max_events)
        answer(Done())
        while (message := _messages(source)) is not None:
            match message:
                case Fold():
                    answer(Done(building.fold(message)))
                case Finish():
                    building.finish()
                    answer(Done())
                case Begin():
                    raise ValueError("`Begin` comes once")
    except BrokenPipeError:
        return 1
    except Exception as error:
        failed = _failed(begin.where, error)
        if failed is None:
            raise
        answer(failed)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
