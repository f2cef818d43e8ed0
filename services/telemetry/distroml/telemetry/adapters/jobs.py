"""Job views and their events in SQLite, folded from the public log."""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from distroml.events import Position, Recorded
from distroml.telemetry.domain.facts import JobFact, PlanSeen
from distroml.telemetry.domain.view import JobView, evolve

_CACHED_VIEWS = 512
_PRUNE_EVERY = 256

_view_encoder = msgspec.msgpack.Encoder()
_view_decoder: msgspec.msgpack.Decoder[JobView] = msgspec.msgpack.Decoder(JobView)

STATE_GROUPS = {
    "active": ("running", "admitted", "pausing", "cancelling", "preempting"),
    "waiting": ("queued", "paused"),
    "succeeded": ("succeeded",),
    "failed": ("failed", "cancelled"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Projected:
    """A recorded event read: what it means for a job (None: nothing), and its body as JSON text."""

    recorded: Recorded
    job: str
    fact: JobFact | None
    json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """An event as the job page shows it."""

    revision: int
    idx: int
    position: str
    type: str
    stream: str
    version: int
    at_ms: int
    actor: str
    generation: int
    json: str


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


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """Some jobs of a list, newest first, and how many the filter selects in all."""

    jobs: Sequence[tuple[JobView, LiveRow]]
    total: int


class JobWriter:
    """Folds events inside the caller's transaction. After a rollback the object must be thrown away."""

    def __init__(self, connection: sqlite3.Connection, *, max_events: int) -> None:
        self._db = connection
        self._max_events = max_events
        self._views: OrderedDict[str, JobView] = OrderedDict()
        self._inserted = 0

    def apply(self, events: Iterable[Projected]) -> set[str]:
        """Take events into account, each once by (stream, version); returns the jobs that changed."""
        changed: set[str] = set()
        seen: dict[str, int] = {}
        for event in events:
            recorded = event.recorded
            known = seen[recorded.stream] if recorded.stream in seen else self._version(recorded.stream)
            if recorded.version <= known:
                continue
            seen[recorded.stream] = recorded.version
            self._insert(event)
            if isinstance(event.fact, PlanSeen):
                self._db.execute(
                    "INSERT INTO plans VALUES (?,?,?) ON CONFLICT (job) DO UPDATE SET generation=excluded.generation, "
                    "json=excluded.json WHERE excluded.generation >= generation",
                    (event.job, event.fact.generation, event.json),
                )
            if event.fact is not None:
                self._views[event.job] = evolve(self._view(event.job), event.fact)
            changed.add(event.job)
        self._db.executemany("INSERT OR REPLACE INTO versions VALUES (?,?)", seen.items())
        for job in changed:
            view = self._view(job)
            self._db.execute(
                "INSERT OR REPLACE INTO jobs VALUES (?,?,?,?,?,?,?)",
                (job, view.project, view.name, view.state, view.submitted_ms, view.finished_ms,
                 _view_encoder.encode(view)),
            )  # fmt: skip
        while len(self._views) > _CACHED_VIEWS:
            self._views.popitem(last=False)
        return changed

    def store_cursor(self, position: Position) -> None:
        """Everything up to `position` is folded."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('cursor', ?)", (str(position),))

    def _version(self, stream: str) -> int:
        row = self._db.execute("SELECT version FROM versions WHERE stream=?", (stream,)).fetchone()
        return 0 if row is None else row[0]

    def _view(self, job: str) -> JobView:
        view = self._views.get(job)
        if view is None:
            view = read_view(self._db, job) or JobView(job=job)
            self._views[job] = view
        self._views.move_to_end(job)
        return view

    def _insert(self, event: Projected) -> None:
        r = event.recorded
        at = r.context.time_ms
        self._db.execute(
            "INSERT OR REPLACE INTO events VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (event.job, r.position.revision, r.position.index, str(r.position), r.type, r.stream, r.version, at,
             r.context.actor, r.context.generation, event.json),
        )  # fmt: skip
        self._inserted += 1
        if self._inserted % _PRUNE_EVERY == 0:
            self._db.execute(
                "DELETE FROM events WHERE job=?1 AND (revision, idx) <= (SELECT revision, idx FROM events WHERE "
                "job=?1 ORDER BY revision DESC, idx DESC LIMIT 1 OFFSET ?2)",
                (event.job, self._max_events),
            )


def read_cursor(db: sqlite3.Connection) -> Position | None:
    """Up to where the log is folded; None for nothing yet."""
    row = db.execute("SELECT value FROM meta WHERE key='cursor'").fetchone()
    return None if row is None else Position.parse(row[0])


def read_view(db: sqlite3.Connection, job: str) -> JobView | None:
    """The view of one job."""
    row = db.execute("SELECT view FROM jobs WHERE job=?", (job,)).fetchone()
    return None if row is None else _view_decoder.decode(row[0])


_LIVE_COLUMNS = (
    "live.step, live.total_steps, live.loss, live.tokens_per_s, live.samples_per_s, live.step_s, live.eta_ms, "
    "live.world_size, live.generation, live.at_ms"
)


def read_live(db: sqlite3.Connection, job: str) -> LiveRow:
    """The newest numbers of one job; zeros where it has no sample."""
    row = db.execute(f"SELECT {_LIVE_COLUMNS} FROM live WHERE job=?", (job,)).fetchone()
    return LiveRow() if row is None else _live(row)


def _live(row: Sequence[object]) -> LiveRow:
    names = LiveRow.__slots__
    return msgspec.convert(dict(zip(names, row, strict=True)), LiveRow) if row[0] is not None else LiveRow()


def read_jobs(db: sqlite3.Connection, *, group: str = "", text: str = "", offset: int = 0, limit: int = 50) -> JobPage:
    """Jobs, newest first.

    Args:
        db: a reading connection.
        group: a key of `STATE_GROUPS`, or empty for all.
        text: only jobs whose name, id or project holds it.
        offset: how many to leave out at the beginning.
        limit: at most this many.
    """
    where, values = ["jobs.submitted_ms > 0"], list[object]()
    if group:
        states = STATE_GROUPS[group]
        where.append(f"state IN ({','.join('?' * len(states))})")
        values.extend(states)
    if text:
        where.append("(instr(lower(name), lower(?)) OR instr(jobs.job, lower(?)) OR instr(project, lower(?)))")
        values.extend((text, text, text))
    condition = " AND ".join(where)
    (total,) = db.execute(f"SELECT count(*) FROM jobs WHERE {condition}", values).fetchone()
    cursor = db.execute(
        f"SELECT view, {_LIVE_COLUMNS} FROM jobs LEFT JOIN live ON live.job = jobs.job WHERE {condition} "
        "ORDER BY submitted_ms DESC, jobs.job LIMIT ? OFFSET ?",
        (*values, limit, offset),
    )
    return JobPage(jobs=[(_view_decoder.decode(view), _live(live)) for view, *live in cursor], total=total)


def count_states(db: sqlite3.Connection) -> dict[str, int]:
    """How many jobs are in each state."""
    return dict(db.execute("SELECT state, count(*) FROM jobs WHERE submitted_ms > 0 GROUP BY state"))


def total_tokens_per_s(db: sqlite3.Connection, since_ms: int) -> float:
    """Throughput of all jobs that made a step since then."""
    row = db.execute(
        "SELECT ifnull(sum(live.tokens_per_s), 0) FROM live JOIN jobs ON jobs.job = live.job "
        "WHERE jobs.state = 'running' AND live.at_ms >= ?",
        (since_ms,),
    ).fetchone()
    return row[0]


def read_events(
    db: sqlite3.Connection, job: str, *, after: tuple[int, int] = (0, -1), limit: int = 200
) -> list[EventRow]:
    """The newest events of a job past `after` (revision, index), newest first."""
    cursor = db.execute(
        "SELECT revision, idx, position, type, stream, version, at_ms, actor, generation, json FROM events "
        "WHERE job=? AND (revision, idx) > (?, ?) ORDER BY revision DESC, idx DESC LIMIT ?",
        (job, *after, limit),
    )
    names = EventRow.__slots__
    return [EventRow(**dict(zip(names, row, strict=True))) for row in cursor]
