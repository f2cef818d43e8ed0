"""The SQLite file of the read models: disposable, so a damaged one is moved aside and begun anew."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from distroml.observability import logger

log = logger(__name__)

FORMAT = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE versions (stream TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE jobs (
  job TEXT PRIMARY KEY, project TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
  submitted_ms INTEGER NOT NULL, finished_ms INTEGER NOT NULL, view BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_by_age ON jobs (submitted_ms DESC, job);
CREATE INDEX jobs_by_state ON jobs (state, submitted_ms DESC, job);
CREATE TABLE live (
  job TEXT PRIMARY KEY, step INTEGER NOT NULL, total_steps INTEGER NOT NULL, loss REAL, tokens_per_s REAL NOT NULL,
  samples_per_s REAL NOT NULL, step_s REAL NOT NULL, eta_ms INTEGER NOT NULL,
  world_size INTEGER NOT NULL, generation INTEGER NOT NULL, at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE dropped (job TEXT PRIMARY KEY, samples INTEGER NOT NULL, lines INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
  job TEXT NOT NULL, revision INTEGER NOT NULL, idx INTEGER NOT NULL, position TEXT NOT NULL, type TEXT NOT NULL,
  stream TEXT NOT NULL, version INTEGER NOT NULL, at_ms INTEGER NOT NULL, actor TEXT NOT NULL,
  generation INTEGER NOT NULL, json TEXT NOT NULL, PRIMARY KEY (job, revision, idx)
) WITHOUT ROWID;
CREATE TABLE points (
  job TEXT NOT NULL, kind TEXT NOT NULL, rank INTEGER NOT NULL, level INTEGER NOT NULL, idx INTEGER NOT NULL,
  x INTEGER NOT NULL, at_ms INTEGER NOT NULL, generation INTEGER NOT NULL, stats BLOB NOT NULL,
  PRIMARY KEY (job, kind, rank, level, idx)
) WITHOUT ROWID;
CREATE TABLE generations (
  job TEXT NOT NULL, generation INTEGER NOT NULL, first_step INTEGER NOT NULL, first_at_ms INTEGER NOT NULL,
  last_step INTEGER NOT NULL, last_at_ms INTEGER NOT NULL, PRIMARY KEY (job, generation)
) WITHOUT ROWID;
CREATE TABLE resources (
  job TEXT NOT NULL, rank INTEGER NOT NULL, worker TEXT NOT NULL, node TEXT NOT NULL, at_ms INTEGER NOT NULL,
  cpu_ratio REAL NOT NULL, rss_bytes INTEGER NOT NULL, gpu_ratio REAL, gpu_bytes INTEGER, PRIMARY KEY (job, rank)
) WITHOUT ROWID;
CREATE TABLE rank_steps (
  job TEXT NOT NULL, rank INTEGER NOT NULL, step INTEGER NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (job, rank)
) WITHOUT ROWID;
CREATE TABLE logs (
  seq INTEGER PRIMARY KEY, job TEXT NOT NULL, worker TEXT NOT NULL, incarnation INTEGER NOT NULL,
  stream TEXT NOT NULL, offset INTEGER NOT NULL, rank INTEGER NOT NULL, generation INTEGER NOT NULL,
  at_ms INTEGER NOT NULL, text TEXT NOT NULL, bytes INTEGER NOT NULL
);
CREATE UNIQUE INDEX logs_once ON logs (job, worker, incarnation, stream, offset);
CREATE INDEX logs_of_job ON logs (job, seq);
CREATE TABLE spans (
  seq INTEGER PRIMARY KEY, job TEXT NOT NULL, trace_id TEXT NOT NULL, span_id TEXT NOT NULL,
  parent_span_id TEXT NOT NULL, name TEXT NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  attributes BLOB NOT NULL
);
CREATE UNIQUE INDEX spans_once ON spans (job, trace_id, span_id);
CREATE INDEX spans_of_job ON spans (job, seq);
"""
# Tables that came after the first files of this format were written; made in old files too.
_LATER = """
CREATE TABLE IF NOT EXISTS plans (job TEXT PRIMARY KEY, generation INTEGER NOT NULL, json TEXT NOT NULL) WITHOUT ROWID;
"""


class Damaged(Exception):
    """The file is no read model of this release; the text says what was found."""


def open_database(path: Path) -> tuple[sqlite3.Connection, str]:
    """Open the read model for writing, begun anew where there is none or it cannot be trusted.

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
            return _opened(path, create=False), ""
        except (Damaged, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
                raise
            why = f"{error}; the old file is {set_aside(path).name}"
            log.error("the read model cannot be used and begins anew", why=why)
    return _opened(path, create=True), why


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


def _opened(path: Path, *, create: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        # Losing the last moments at a power cut costs pictures only; the log replays the rest.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint=2000")
        if create:
            connection.executescript(f"BEGIN;{_SCHEMA}{_LATER}PRAGMA user_version={FORMAT};COMMIT;")
            return connection
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found != FORMAT:
            raise Damaged(f"{path.name} has format {found}, this release writes {FORMAT}")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise Damaged(f"{path.name} fails SQLite's own check: {verdict}")
        connection.executescript(_LATER)
        return connection
    except BaseException:
        connection.close()
        raise
