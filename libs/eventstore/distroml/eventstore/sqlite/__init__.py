"""The embedded back end: the log in one SQLite file, shared by the processes of a deployment."""

from __future__ import annotations

from pathlib import Path

from distroml.eventstore.errors import translated
from distroml.eventstore.sqlite.tables import SqliteLog
from distroml.eventstore.sqlite.verify import Damage, verify_log
from distroml.eventstore.store import TableEventStore
from distroml.statestore.sqlite.database import SqliteDatabase
from distroml.statestore.sqlite.tables import SqliteTables

__all__ = ["Damage", "SqliteEventStore", "event_store", "open_event_store", "verify_log"]

SqliteEventStore = TableEventStore[SqliteTables]


def open_event_store(path: Path | str, *, create: bool = True, deployment: str = "") -> SqliteEventStore:
    """The event store in the file at `path`, sharing keys and revisions with the state store there.

    Args:
        path: the file; its folder exists. Beside it appear `-wal`, `-shm`, `.lock` and `.queue`.
        create: make the file where it is absent.
        deployment: id of a new file's log (fresh where empty); an existing file must have it.

    Raises:
        StoreDamaged: the file is truncated or no store; the text says what to do.
        StoreDown: it is absent, another format's or deployment's, or may not be written.
        StoreFull: there is no room to create it.
    """
    with translated():
        return event_store(SqliteDatabase.share(path, create=create, log_id=deployment))


def event_store(database: SqliteDatabase) -> SqliteEventStore:
    """An event store over an open database, which it closes as one of its users."""
    return TableEventStore(database, SqliteLog)
