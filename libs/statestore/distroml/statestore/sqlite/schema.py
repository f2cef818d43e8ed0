"""The one file behind both stores: its tables, its format version, and the checks at opening.

Events, keys, leases, command records and cursors share a file because one transaction writes them together.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from distroml.events import fresh_id
from distroml.statestore.failpoint import hit
from distroml.statestore.port import StateStoreDown
from distroml.statestore.sqlite.errors import damaged, translate

APPLICATION_ID = 0x44_4D_4C_31
FORMAT = 1
BUSY_TIMEOUT_S = 10.0
WAL_BYTES_KEPT = 16 * 1024 * 1024
"""What a burst may leave the WAL at; beyond it the file is cut when it is next begun anew."""
QUICK_CHECK_BYTES = 64 * 1024 * 1024
"""Up to this size the whole file is checked at opening; above it only its header, length and schema."""

# An event's seq is revision * 128 + index: one B-tree for the log, and positions without a second column.
INDEX_BITS = 7

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE keys (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease TEXT NOT NULL);
CREATE INDEX keys_by_lease ON keys (lease) WHERE lease != '';
CREATE TABLE leases (id TEXT PRIMARY KEY, ttl_s INTEGER NOT NULL, renewed REAL NOT NULL, boot TEXT NOT NULL)
    WITHOUT ROWID;
CREATE TABLE changes (seq INTEGER PRIMARY KEY, revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB,
    total INTEGER NOT NULL);
CREATE INDEX changes_by_revision ON changes (revision);
CREATE TABLE commits (revision INTEGER PRIMARY KEY, context TEXT NOT NULL, hash BLOB NOT NULL);
CREATE TABLE events (seq INTEGER PRIMARY KEY, stream TEXT NOT NULL, version INTEGER NOT NULL, id TEXT NOT NULL,
    type TEXT NOT NULL, schema INTEGER NOT NULL, public INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE UNIQUE INDEX events_by_stream ON events (stream, version);
CREATE TABLE streams (stream TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE commands (id TEXT PRIMARY KEY, content_hash BLOB NOT NULL, answer BLOB NOT NULL, at_ms INTEGER NOT NULL);
CREATE INDEX commands_by_age ON commands (at_ms);
CREATE TABLE cursors (name TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sealed (stream TEXT PRIMARY KEY, version INTEGER NOT NULL, parts BLOB NOT NULL)
"""
# Files of format 1 made before streams were retired get this table at their next opening; who does not know it folds
# the events of retired streams, and comes to the same states.
_SEALED = _TABLES.rpartition(";")[2]


def connect(path: Path, *, writes: bool) -> sqlite3.Connection:
    """A connection with autocommit off the module's hands and every commit synced."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    if writes:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
    else:
        connection.execute("PRAGMA query_only = ON")
    return connection


def prepare(path: Path, *, create: bool, log_id: str) -> str:
    """Make the file if it is new and `create`, check it if it is not; returns its log id.

    The caller holds the write lock.

    Raises:
        StateStoreDamaged: the file is not a whole SQLite database.
        StateStoreDown: it is absent, of another format or deployment, or may not be written.
        StateStoreFull: there is no room for it.
    """
    try:
        return _prepare(path, create, log_id)
    except (sqlite3.Error, OSError) as error:
        raise translate(path, error) from error


def _prepare(path: Path, create: bool, log_id: str) -> str:
    if not path.exists():
        if not create:
            raise StateStoreDown(f"{path}: there is no store here; start the control plane once, or check the folder")
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    elif not path.is_file():
        raise StateStoreDown(f"{path} is not a file; give the path of the store's file")
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        raise StateStoreDown(f"{path}: this user may not write here; change the owner or choose another folder")
    _check_header(path)
    connection = connect(path, writes=True)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if not (version or application or tables):
            if not create:
                raise StateStoreDown(f"{path}: the store is empty; start the control plane once")
            _make(connection, log_id or fresh_id("dep"))
        elif application != APPLICATION_ID:
            raise StateStoreDown(f"{path} is some other program's SQLite file; give the path of a DistroML store")
        elif version != FORMAT:
            raise StateStoreDown(
                f"{path} has format {version}, this release reads {FORMAT}; use the release that wrote it"
            )
        _check(path, connection)
        connection.execute(_SEALED)
        (found,) = connection.execute("SELECT value FROM meta WHERE name = 'log_id'").fetchone() or ("",)
        if log_id and found != log_id:
            raise StateStoreDown(f"{path} belongs to deployment {found!r}, not {log_id!r}; give that deployment's file")
        return found
    finally:
        connection.close()


def _make(connection: sqlite3.Connection, log_id: str) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";"):
        hit("sqlite.create")
        connection.execute(statement)
    rows = [("log_id", log_id), ("revision", 0), ("chain", b""), ("compacted", 0)]
    connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    hit("sqlite.create")
    connection.execute("COMMIT")
    hit("sqlite.create")


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        header = file.read(100)
    if header and (len(header) < 100 or not header.startswith(b"SQLite format 3\0")):
        raise damaged(path, "it does not begin like an SQLite file")


def _check(path: Path, connection: sqlite3.Connection) -> None:
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    wal = path.with_name(path.name + "-wal")
    # With frames left in the WAL the file itself may rightly be shorter than the database.
    if (not wal.exists() or not wal.stat().st_size) and path.stat().st_size < page_size * pages:
        raise damaged(path, f"it has {path.stat().st_size} bytes of {page_size * pages}")
    if page_size * pages <= QUICK_CHECK_BYTES:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged(path, str(verdict).splitlines()[-1])
