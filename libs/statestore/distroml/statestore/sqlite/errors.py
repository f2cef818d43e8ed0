"""What SQLite and the file system say, in the words of the state store."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from pathlib import Path

from distroml.statestore.port import StateStoreDamaged, StateStoreDown, StateStoreError, StateStoreFull

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_WHAT_TO_DO = "stop the services, keep the file, and restore it from a backup or the sealed segments"


def damaged(path: Path, what: str) -> StateStoreDamaged:
    """The file at `path` cannot be trusted."""
    return StateStoreDamaged(f"{path}: the store is damaged ({what}); {_WHAT_TO_DO}")


def full(path: Path, why: str) -> StateStoreFull:
    """No room for more beside `path`."""
    return StateStoreFull(f"{path}: no room ({why}); nothing was written. Free some disk space and try again")


def translate(path: Path, error: sqlite3.Error | OSError) -> StateStoreError:
    """The state store's error for what SQLite or the system raised."""
    if isinstance(error, OSError):
        if error.errno in FULL_ERRNOS:
            return full(path, error.strerror or str(error))
        return StateStoreDown(f"{path}: {error.strerror or error}")
    code = getattr(error, "sqlite_errorcode", 0)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return full(path, str(error))
    if code & 0xFF == sqlite3.SQLITE_IOERR and (why := _no_room(path)):
        return full(path, why)
    if code & 0xFF in _DAMAGED or "UTF-8" in str(error):
        return damaged(path, str(error))
    if code & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StateStoreDown(f"{path}: this user may not write here ({error}); change the owner or the folder")
    return StateStoreDown(f"{path}: {error}")


def _no_room(path: Path) -> str:
    """Why no more can be written, or empty; SQLite reports a quota or a file size limit as a bare I/O error."""
    wal = path.with_name(path.name + "-wal")
    try:
        end = max(path.stat().st_size, wal.stat().st_size if wal.exists() else 0)
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            os.pwrite(probe.fileno(), b"\0" * 65536, end)
    except OSError as error:
        return (error.strerror or str(error)) if error.errno in FULL_ERRNOS else ""
    return ""
