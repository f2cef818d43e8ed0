"""The embedded back end: one SQLite file per deployment, shared by its processes."""

from __future__ import annotations

from pathlib import Path

from distroml.statestore.sqlite.database import SqliteDatabase
from distroml.statestore.store import TableStateStore

__all__ = ["SqliteDatabase", "open_state_store"]


def open_state_store(path: Path | str, *, create: bool = True, deployment: str = "") -> TableStateStore:
    """The state store in the file at `path`, sharing keys and revisions with the event store there.

    Args:
        path: the file; its folder exists. Beside it appear `-wal`, `-shm`, `.lock` and `.queue`.
        create: make the file where it is absent.
        deployment: id of a new file's deployment (fresh where empty); an existing file must have it.

    Raises:
        StateStoreDamaged: the file is truncated or no store.
        StateStoreDown: it is absent, another format's or deployment's, or may not be written.
        StateStoreFull: there is no room to create it.
    """
    return TableStateStore(SqliteDatabase.share(path, create=create, log_id=deployment))
