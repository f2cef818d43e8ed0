"""The tables of `telemetry.sqlite`: samples, lines and spans as agents push them."""

from __future__ import annotations

from distroml.telemetry.adapters.database import Layout

_SCHEMA = """
CREATE TABLE live (
  job TEXT PRIMARY KEY, step INTEGER NOT NULL, total_steps INTEGER NOT NULL, loss REAL, tokens_per_s REAL NOT NULL,
  samples_per_s REAL NOT NULL, step_s REAL NOT NULL, eta_ms INTEGER NOT NULL,
  world_size INTEGER NOT NULL, generation INTEGER NOT NULL, at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE dropped (job TEXT PRIMARY KEY, samples INTEGER NOT NULL, lines INTEGER NOT NULL) WITHOUT ROWID;
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
# Files of before history had one of its own hold what is there now.
_LATER = "".join(f"DROP TABLE IF EXISTS {table};" for table in ("meta", "versions", "jobs", "events", "plans"))
_COLUMNS = {
    "logs": (
        *("level TEXT NOT NULL DEFAULT ''", "attempt INTEGER NOT NULL DEFAULT 0"),
        *("trace_id TEXT NOT NULL DEFAULT ''", "span_id TEXT NOT NULL DEFAULT ''"),
    )
}
LAYOUT = Layout(format=1, schema=_SCHEMA, later=_LATER, columns=_COLUMNS)
