"""Opening the SQLite files of the read models: disposable, so a damaged one is moved aside and begun anew."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distroml.observability import logger

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """The tables of a file: its format, what makes them in an empty one, what an older file of the format lacks."""

    format: int
    schema: str
    later: str = ""
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    """Of tables that came before them, as `ALTER TABLE` has them."""


class Damaged(Exception):
    """The file is no read model of this release; the text says what was found."""


def open_database(path: Path, layout: Layout) -> tuple[sqlite3.Connection, str]:
    """Open a read model for writing, begun anew where there is none or it cannot be trusted.

    Returns:
        The connection, and in words why the model began anew (empty where it did not).

    Raises:
        OSError, sqlite3.OperationalError: the folder cannot be written at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists() and path.stat().st_size > 0
    why = "" if existed else "there was none"
    if existed:
        try:
            return _opened(path, layout, create=False), ""
        except (Damaged, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise
            why = f"{error}; the old file is {set_aside(path).name}"
            log.error("the read model cannot be used and begins anew", why=why)
    return _opened(path, layout, create=True), why


def set_aside(path: Path) -> Path:
    """Move a damaged file and its companions out of the way; the newest damaged file only is kept."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    for old in path.parent.glob(f"{path.name}.damaged-*"):
        old.unlink(missing_ok=True)
    os.replace(path, aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside


def open_reader(path: Path) -> sqlite3.Connection:
    """A second connection that only reads."""
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA query_only=ON")
    return connection


def _opened(path: Path, layout: Layout, *, create: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        # Losing the last moments at a power cut costs pictures only; the log replays the rest.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint=2000")
        if create:
            connection.executescript(f"BEGIN;{layout.schema}{layout.later}PRAGMA user_version={layout.format};COMMIT;")
            _add_columns(connection, layout.columns)
            return connection
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found != layout.format:
            raise Damaged(f"{path.name} has format {found}, this release writes {layout.format}")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Damaged(f"{path.name} fails SQLite's own check: {verdict}")
        connection.executescript(layout.later)
        _add_columns(connection, layout.columns)
        return connection
    except BaseException:
        connection.close()
        raise


def _add_columns(connection: sqlite3.Connection, columns_of: Mapping[str, Sequence[str]]) -> None:
    for table, columns in columns_of.items():
        there = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
        for column in columns:
            if column.split()[0] not in there:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
