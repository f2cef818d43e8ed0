"""The newest numbers of jobs' samples in SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from distroml.telemetry.domain.rollup import Rollup

_COLUMNS = "step, total_steps, loss, tokens_per_s, samples_per_s, step_s, eta_ms, world_size, generation, at_ms"
_CHUNK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRow:
    """The newest numbers of a job's samples."""

    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0
    samples_per_s: float = 0.0
    step_s: float = 0.0
    eta_ms: int = 0
    world_size: int = 0
    generation: int = 0
    at_ms: int = 0


def read_live(db: sqlite3.Connection, job: str) -> LiveRow:
    """The newest numbers of one job; zeros where it has no sample."""
    row = db.execute(f"SELECT {_COLUMNS} FROM live WHERE job=?", (job,)).fetchone()
    return LiveRow() if row is None else _live(row)


def read_live_of(db: sqlite3.Connection, jobs: Sequence[str]) -> dict[str, LiveRow]:
    """The newest numbers of those jobs that have samples."""
    found: dict[str, LiveRow] = {}
    for start in range(0, len(jobs), _CHUNK):
        chunk = jobs[start : start + _CHUNK]
        marks = ",".join("?" * len(chunk))
        for job, *row in db.execute(f"SELECT job, {_COLUMNS} FROM live WHERE job IN ({marks})", chunk):
            found[job] = _live(row)
    return found


def read_since(db: sqlite3.Connection, since_ms: int) -> dict[str, float]:
    """Tokens per second of each job with a sample since then."""
    return dict(db.execute("SELECT job, tokens_per_s FROM live WHERE at_ms >= ?", (since_ms,)))


def read_jobs_with_samples(db: sqlite3.Connection) -> list[str]:
    """Jobs of which samples or lines are kept."""
    return [job for (job,) in db.execute("SELECT job FROM live UNION SELECT DISTINCT job FROM logs")]


def live_from(rows: Iterable[Rollup]) -> Mapping[str, LiveRow]:
    """What roll-ups say of jobs whose samples another replica has."""
    by_job: dict[str, dict[str, Rollup]] = {}
    for row in rows:
        by_job.setdefault(row.job, {})[row.metric] = row
    return {job: _from_rollups(metrics) for job, metrics in by_job.items()}


def _from_rollups(metrics: Mapping[str, Rollup]) -> LiveRow:
    newest = max(metrics.values(), key=lambda r: r.last_ms)
    values = {name: row.last for name, row in metrics.items()}
    return LiveRow(
        step=newest.step,
        loss=values.get("loss"),
        tokens_per_s=values.get("tokens_per_s", 0.0),
        samples_per_s=values.get("samples_per_s", 0.0),
        step_s=values.get("step_s", 0.0),
        generation=newest.generation,
        at_ms=newest.last_ms,
    )


def _live(row: Sequence[object]) -> LiveRow:
    return msgspec.convert(dict(zip(LiveRow.__slots__, row, strict=True)), LiveRow)
