"""What history is asked, as statements that SQLite and PostgreSQL both know."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import DecodeError

from distroml.events import Position, UnknownEvent
from distroml.rpc.publicevents import decode_public
from distroml.telemetry.domain.rollup import WIDTHS_MS, Rollup
from distroml.telemetry.domain.usage import DAY_MS, Held, SlotTime, pieces
from distroml.telemetry.domain.view import JobView
from distroml.telemetry.history.db import Db, marks
from distroml.telemetry.history.folding import decode_view, stored_cursor
from distroml.telemetry.history.port import EventRow, Filter, JobList, PlanBody, Used

_MAX_CHANGED = 1000
_MAX_ROLLUPS = 100_000
_ROLLUP = "job, metric, width_ms, start_ms, n, total, low, high, last, last_ms, step, generation"
GROUPS = ("job", "project", "day")


def cursor(db: Db) -> Position | None:
    """Up to where history is folded."""
    text = stored_cursor(db)
    return Position.parse(text) if text else None


def view(db: Db, job: str) -> JobView | None:
    """One job."""
    row = db.execute("SELECT view FROM jobs WHERE job=%s", (job,)).fetchone()
    return None if row is None else decode_view(row[0])


def jobs(db: Db, select: Filter, before: tuple[int, str] | None, offset: int, limit: int) -> JobList:
    """A part of the list."""
    where, values = ["submitted_ms > 0"], list[object]()
    if select.states:
        where.append(f"state IN ({marks(select.states)})")
        values.extend(select.states)
    if select.project:
        where.append("project = %s")
        values.append(select.project)
    if select.text:
        where.append("(lower(name) LIKE %s ESCAPE '!' OR lower(job) LIKE %s ESCAPE '!' OR lower(project) LIKE %s "
                     "ESCAPE '!')")  # fmt: skip
        values.extend([_containing(select.text)] * 3)
    row = db.execute(f"SELECT count(*) FROM jobs WHERE {' AND '.join(where)}", values).fetchone()
    if before is not None:
        where.append("(submitted_ms < %s OR (submitted_ms = %s AND job > %s))")
        values.extend((before[0], *before))
    found = db.execute(
        f"SELECT view FROM jobs WHERE {' AND '.join(where)} ORDER BY submitted_ms DESC, job LIMIT %s OFFSET %s",
        (*values, limit, offset),
    )
    views = [decode_view(data) for (data,) in found]
    return JobList(views=views, total=row[0] if row else 0, position=stored_cursor(db))


def _containing(text: str) -> str:
    for special in "!%_":
        text = text.replace(special, f"!{special}")
    return f"%{text.lower()}%"


def counts(db: Db) -> dict[str, int]:
    """Jobs by state."""
    return dict(db.execute("SELECT state, count(*) FROM jobs WHERE submitted_ms > 0 GROUP BY state").fetchall())


def events(db: Db, job: str, after: tuple[int, int], limit: int) -> list[EventRow]:
    """Newest first."""
    at = cursor(db)
    if at is None:
        return []
    found = db.execute(
        "SELECT revision, idx, type, stream, version, at_ms, actor, generation, schema, data FROM events "
        "WHERE job=%s AND (revision, idx) > (%s, %s) ORDER BY revision DESC, idx DESC LIMIT %s",
        (job, *after, limit),
    )
    return [
        EventRow(
            revision=revision,
            idx=idx,
            position=str(Position(at.log, revision, idx)),
            type=type_,
            stream=stream,
            version=version,
            at_ms=at_ms,
            actor=actor,
            generation=generation,
            json=_text(type_, schema, bytes(data)),
        )
        for revision, idx, type_, stream, version, at_ms, actor, generation, schema, data in found
    ]


def _text(type_: str, schema: int, data: bytes) -> str:
    try:
        return MessageToJson(decode_public(type_, schema, data), preserving_proto_field_name=True, indent=None)
    except (UnknownEvent, DecodeError, ValueError):
        return ""


def plan(db: Db, job: str) -> PlanBody | None:
    """The newest generation's."""
    row = db.execute("SELECT generation, type, schema, data FROM plans WHERE job=%s", (job,)).fetchone()
    return None if row is None else PlanBody(generation=row[0], type=row[1], schema=row[2], data=bytes(row[3]))


def changed_since(db: Db, revision: int) -> set[str]:
    """Jobs with newer events."""
    found = db.execute("SELECT job FROM jobs WHERE revision > %s LIMIT %s", (revision, _MAX_CHANGED))
    return {job for (job,) in found}


def ended(db: Db, among: Sequence[str]) -> list[str]:
    """The last to end first."""
    found: list[tuple[int, str]] = []
    for start in range(0, len(among), 500):
        chunk = among[start : start + 500]
        found.extend(
            db.execute(
                f"SELECT finished_ms, job FROM jobs WHERE finished_ms > 0 AND job IN ({marks(chunk)})", chunk
            ).fetchall()
        )
    return [job for _, job in sorted(found, reverse=True)]


def slot_times(db: Db, job: str) -> list[SlotTime]:
    """Oldest first."""
    found = db.execute(
        "SELECT job, project, attempt, slots, since_ms, until_ms FROM slot_times WHERE job=%s ORDER BY since_ms", (job,)
    )
    return [
        SlotTime(job=name, project=project, attempt=attempt, slots=slots, since_ms=since, until_ms=until)
        for name, project, attempt, slots, since, until in found
    ]


def used(
    db: Db, by: Sequence[str], job: str, project: str, days: tuple[int, int], now_ms: int, limit: int
) -> list[Used]:  # fmt: skip
    """Ended pieces are added up by the database; what is held now, which slots bound, is cut here and added."""
    wanted = [name for name in GROUPS if name in by]
    where, values = ["day BETWEEN %s AND %s"], list[object](days)
    open_where, open_values = ["slots > 0"], list[object]()
    for column, value in (("job", job), ("project", project)):
        if value:
            where.append(f"{column} = %s")
            open_where.append(f"{column} = %s")
            values.append(value)
            open_values.append(value)
    columns = ", ".join(name if name in wanted else ("0" if name == "day" else "''") for name in GROUPS)
    group = f" GROUP BY {', '.join(wanted)}" if wanted else ""
    sums = db.execute(
        f"SELECT {columns}, sum(slots * (until_ms - since_ms)) FROM slot_times WHERE {' AND '.join(where)}{group} "
        "ORDER BY 4 DESC LIMIT %s",
        (*values, limit),
    )
    total: dict[tuple[str, str, int], int] = {(j, p, d): int(n) for j, p, d, n in sums if n is not None}
    held = db.execute(
        f"SELECT job, project, attempt, slots, slots_since_ms FROM jobs WHERE {' AND '.join(open_where)}", open_values
    )
    for name, of, attempt, slots, since in held:
        for piece in pieces(Held(job=name, project=of, attempt=attempt, slots=slots, since_ms=since), now_ms):
            if days[0] <= piece.day <= days[1]:
                key = (
                    piece.job if "job" in wanted else "",
                    piece.project if "project" in wanted else "",
                    piece.since_ms // DAY_MS if "day" in wanted else 0,
                )
                total[key] = total.get(key, 0) + piece.slot_ms
    largest = heapq.nlargest(limit, total.items(), key=lambda row: row[1])
    return [Used(job=j, project=p, day=d, slot_ms=n) for (j, p, d), n in sorted(largest)]


def add_rollups(db: Db, rows: Sequence[Rollup], writer: str, sequence: int, now_ms: int) -> None:
    """Put together with what is there, unless this very call was."""
    known = db.execute("SELECT sequence FROM rollup_writers WHERE writer=%s", (writer,)).fetchone()
    if known is not None and known[0] >= sequence:
        return
    db.execute(
        "INSERT INTO rollup_writers VALUES (%s,%s,%s) ON CONFLICT (writer) DO UPDATE SET sequence=excluded.sequence, "
        "at_ms=excluded.at_ms",
        (writer, sequence, now_ms),
    )
    newer = "CASE WHEN excluded.last_ms >= rollups.last_ms THEN excluded.{0} ELSE rollups.{0} END"
    lasts = ", ".join(f"{name}={newer.format(name)}" for name in ("last", "step", "generation", "last_ms"))
    db.executemany(
        f"INSERT INTO rollups ({_ROLLUP}) VALUES (%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s,%s) "
        "ON CONFLICT (job, metric, width_ms, start_ms) DO UPDATE SET n=rollups.n+excluded.n, "
        "total=rollups.total+excluded.total, "
        "low=CASE WHEN excluded.low < rollups.low THEN excluded.low ELSE rollups.low END, "
        f"high=CASE WHEN excluded.high > rollups.high THEN excluded.high ELSE rollups.high END, {lasts}",
        [
            (r.job, r.metric, r.width_ms, r.start_ms, r.n, r.total, r.low, r.high, r.last, r.last_ms, r.step,
             r.generation)
            for r in sorted(rows, key=lambda r: (r.job, r.metric, r.width_ms, r.start_ms))
        ],
    )  # fmt: skip


def rollups(db: Db, job: str, metrics: Sequence[str], from_ms: int) -> list[Rollup]:
    """Of all widths."""
    chosen = f" AND metric IN ({marks(metrics)})" if metrics else ""
    found = db.execute(
        f"SELECT {_ROLLUP} FROM rollups WHERE job=%s AND start_ms >= %s{chosen} ORDER BY start_ms DESC LIMIT %s",
        (job, from_ms, *metrics, _MAX_ROLLUPS),
    )
    return [_rollup(row) for row in found]


def newest(db: Db, among: Sequence[str]) -> list[Rollup]:
    """The row of the newest hour of each metric."""
    width = WIDTHS_MS[-1]
    result: list[Rollup] = []
    for start in range(0, len(among), 500):
        chunk = among[start : start + 500]
        found = db.execute(
            f"SELECT {_ROLLUP} FROM rollups WHERE width_ms=%s AND job IN ({marks(chunk)}) AND start_ms = "
            "(SELECT max(start_ms) FROM rollups AS other WHERE other.job = rollups.job AND "
            "other.metric = rollups.metric AND other.width_ms = rollups.width_ms)",
            (width, *chunk),
        )
        result.extend(_rollup(row) for row in found)
    return result


def drop_rollups(db: Db, older_than_ms: Mapping[int, int]) -> int:
    """By width; writers that were silent for as long as the finest is kept are forgotten too."""
    dropped = 0
    for width, moment in older_than_ms.items():
        rows = db.execute("DELETE FROM rollups WHERE width_ms=%s AND start_ms < %s", (width, moment))
        dropped += db.changed(rows)
    db.execute("DELETE FROM rollup_writers WHERE at_ms < %s", (max(older_than_ms.values(), default=0),))
    return dropped


def _rollup(row: Sequence[object]) -> Rollup:
    return Rollup(**dict(zip(_ROLLUP.split(", "), row, strict=True)))  # pyright: ignore[reportArgumentType]
