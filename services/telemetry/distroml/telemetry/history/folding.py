"""Folding events into the tables of history, inside the caller's transaction.

A job's view is written once for all that was folded before `store`, not once for each event.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

import msgspec

from distroml.events import Position, Recorded
from distroml.telemetry.domain.facts import JobFact, PlanSeen
from distroml.telemetry.domain.usage import SlotTime, ended_pieces
from distroml.telemetry.domain.view import JobView, evolve
from distroml.telemetry.history.db import Db, marks
from distroml.telemetry.history.port import Projected, Rebuilt

_CACHED = 4096
_PRUNE_EVERY = 256
_CHUNK = 500
_MAX_COUNTED = 50_000

_encoder = msgspec.msgpack.Encoder()
decode_view = msgspec.msgpack.Decoder(JobView).decode

EVENT_COLUMNS = (
    "job", "revision", "idx", "type", "schema", "stream", "version", "at_ms", "actor", "generation", "data",
)  # fmt: skip
EventTuple = tuple[str, int, int, str, int, str, int, int, str, int, bytes]
"""A row of `events`: what `EVENT_COLUMNS` names."""

PROJECTED_TABLES = ("versions", "jobs", "events", "plans", "slot_times")


class Folder:
    """Remembers views and versions from one batch to the next.

    After a transaction that did not commit it must be `reset`; that others wrote in between it sees by the cursor.
    """

    def __init__(self, *, max_events: int) -> None:
        self._max_events = max_events
        self.reset()

    def reset(self) -> None:
        """Remember nothing."""
        self._views: OrderedDict[str, JobView] = OrderedDict()
        self._versions: OrderedDict[str, int] = OrderedDict()
        self._added: Counter[str] = Counter()
        self._at = ""
        self._clear()

    @property
    def waiting(self) -> int:
        """How many rows wait for `store`."""
        return len(self._changed) + len(self._streams) + len(self._times)

    def apply(
        self, db: Db, events: Sequence[Projected], *, after: Position | None, cursor: Position, locked: str
    ) -> set[str]:
        """See `History.apply`; `locked` is what makes a reading statement keep others from the row, or empty."""
        stored = stored_cursor(db, locked)
        if stored != (str(after) if after else ""):
            raise Rebuilt(f"history is folded up to {stored or 'nothing'}, not to {after or 'nothing'}")
        if stored != self._at:
            self.reset()
        rows = self.take(db, [(event_row(event.job, event.recorded), event.fact) for event in events])
        changed = set(self._changed)
        self.store(db)
        self._prune(db, rows)
        move_cursor(db, str(cursor))
        self._at = str(cursor)
        return changed

    def take(self, db: Db, events: Sequence[tuple[EventTuple, JobFact | None]]) -> list[EventTuple]:
        """Fold events and write them; what they change waits for `store`. Returns those that were new."""
        self._warm(db, events)
        versions, views, streams, changed = self._versions, self._views, self._streams, self._changed
        rows: list[EventTuple] = []
        for row, fact in events:
            job, stream, version = row[0], row[5], row[6]
            if version <= versions[stream]:
                continue
            versions[stream] = streams[stream] = version
            rows.append(row)
            changed[job] = row[1]
            if fact is None:
                continue
            if isinstance(fact, PlanSeen):
                self._plan(row, fact)
            before = views[job]
            view = views[job] = evolve(before, fact)
            if before.placed_workers:
                self._times.extend(ended_pieces(before, view, fact.at_ms))
        db.append("events", EVENT_COLUMNS, rows)
        return rows

    def _plan(self, row: EventTuple, fact: PlanSeen) -> None:
        job = row[0]
        known = self._plans.get(job)
        if known is None or fact.generation >= known[1]:
            self._plans[job] = (job, fact.generation, row[3], row[4], row[10])

    def _warm(self, db: Db, events: Sequence[tuple[EventTuple, JobFact | None]]) -> None:
        """Know the views and versions of everything in the batch."""
        unknown: list[str] = []
        for stream in dict.fromkeys(row[5] for row, _ in events):
            if stream in self._versions:
                self._versions.move_to_end(stream)
            else:
                unknown.append(stream)
        for chunk in _chunks(unknown):
            self._versions.update(dict.fromkeys(chunk, 0))
            found = db.execute(f"SELECT stream, version FROM versions WHERE stream IN ({marks(chunk)})", chunk)
            self._versions.update((stream, version) for stream, version in found)
        unknown = []
        for job in dict.fromkeys(row[0] for row, _ in events):
            if job in self._views:
                self._views.move_to_end(job)
            else:
                unknown.append(job)
        for chunk in _chunks(unknown):
            self._views.update((job, JobView(job=job)) for job in chunk)
            found = db.execute(f"SELECT job, view FROM jobs WHERE job IN ({marks(chunk)})", chunk)
            self._views.update((job, decode_view(view)) for job, view in found)

    def store(self, db: Db) -> None:
        """Write what waits."""
        db.executemany(
            "INSERT INTO versions VALUES (%s,%s) ON CONFLICT (stream) DO UPDATE SET version=excluded.version",
            list(self._streams.items()),
        )
        db.executemany(
            "INSERT INTO jobs VALUES (%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s) ON CONFLICT (job) DO UPDATE SET "
            "project=excluded.project, name=excluded.name, state=excluded.state, submitted_ms=excluded.submitted_ms, "
            "finished_ms=excluded.finished_ms, revision=excluded.revision, attempt=excluded.attempt, "
            "slots=excluded.slots, slots_since_ms=excluded.slots_since_ms, view=excluded.view",
            [
                (job, v.project, v.name, v.state, v.submitted_ms, v.finished_ms, revision, v.attempt,
                 v.placed_workers, v.placed_since_ms, _encoder.encode(v))
                for job, revision in self._changed.items()
                for v in (self._views[job],)
            ],
        )  # fmt: skip
        db.executemany(
            "INSERT INTO plans VALUES (%s,%s,%s,%s,%s) ON CONFLICT (job) DO UPDATE SET "
            "generation=excluded.generation, type=excluded.type, schema=excluded.schema, data=excluded.data "
            "WHERE excluded.generation >= plans.generation",
            list(self._plans.values()),
        )
        # A clock that went back can make a second piece with the same beginning: the later word counts.
        db.executemany(
            "INSERT INTO slot_times VALUES (%s,%s,%s,%s,%s,%s,%s) ON CONFLICT (job, since_ms) DO UPDATE SET "
            "until_ms=excluded.until_ms, slots=excluded.slots, attempt=excluded.attempt",
            [(t.job, t.project, t.day, t.attempt, t.slots, t.since_ms, t.until_ms) for t in self._times],
        )
        self._clear()
        for cache in (self._views, self._versions):
            while len(cache) > _CACHED:
                cache.popitem(last=False)

    def _clear(self) -> None:
        self._changed: dict[str, int] = {}
        self._streams: dict[str, int] = {}
        self._plans: dict[str, tuple[str, int, str, int, bytes]] = {}
        self._times: list[SlotTime] = []

    def _prune(self, db: Db, rows: Sequence[EventTuple]) -> None:
        """Keep the newest events of a job only; looked at once in a while."""
        self._added.update(row[0] for row in rows)
        full = [job for job, added in self._added.items() if added >= _PRUNE_EVERY]
        for job in full:
            del self._added[job]
            prune(db, job, self._max_events)
        if len(self._added) > _MAX_COUNTED:
            self._added.clear()


def event_row(job: str, recorded: Recorded) -> EventTuple:
    """The row of an event."""
    at, context = recorded.position, recorded.context
    return (
        job, at.revision, at.index, recorded.type, recorded.schema, recorded.stream,
        recorded.version, context.time_ms, context.actor, context.generation, recorded.data,
    )  # fmt: skip


def prune(db: Db, job: str, most: int) -> None:
    """Keep so many of a job's newest events."""
    db.execute(
        "DELETE FROM events WHERE job=%s AND (revision, idx) <= (SELECT revision, idx FROM events WHERE "
        "job=%s ORDER BY revision DESC, idx DESC LIMIT 1 OFFSET %s)",
        (job, job, most),
    )


def move_cursor(db: Db, cursor: str) -> None:
    """Say up to where history is folded."""
    db.execute("UPDATE meta SET value=%s WHERE key='cursor'", (cursor,))


def stored_cursor(db: Db, locked: str = "") -> str:
    """Up to where history is folded, as text; empty for nothing yet."""
    row = db.execute(f"SELECT value FROM meta WHERE key='cursor'{locked}").fetchone()
    return "" if row is None else str(row[0])


def forget(db: Db) -> None:
    """Drop what was folded."""
    for table in PROJECTED_TABLES:
        db.execute(f"DELETE FROM {table}")
    db.execute("UPDATE meta SET value='' WHERE key='cursor'")


def _chunks(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]
