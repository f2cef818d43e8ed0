"""Log lines and spans in SQLite: bounded per job, each line once."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from distroml.api.telemetry.v1.telemetry_pb2 import SpanRecord
from distroml.telemetry.domain.rows import NewLine

_TRIM_TO = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRow:
    """A kept line; `seq` grows with each line that came."""

    seq: int
    worker: str
    incarnation: int
    stream: str
    offset: int
    rank: int
    generation: int
    at_ms: int
    text: str
    attempt: int = 0
    level: str = ""
    trace_id: str = ""
    span_id: str = ""


_FIELDS = tuple(field.name for field in dataclasses.fields(LineRow))
COLUMNS = ", ".join(_FIELDS[1:])
"""What is kept of a line, in the order of `LineRow`, after `seq`."""
_INSERT = f"INSERT OR IGNORE INTO logs ({', '.join(NewLine._fields)}) VALUES ({', '.join('?' * len(NewLine._fields))})"


class LogWriter:
    """Writes lines and spans inside the caller's transaction. After a rollback the object must be thrown away."""

    def __init__(self, connection: sqlite3.Connection, *, max_lines: int, max_bytes: int, max_spans: int) -> None:
        self._db = connection
        self._max_lines, self._max_bytes, self._max_spans = max_lines, max_bytes, max_spans
        self._sizes: dict[str, tuple[int, int]] = {}
        self._spans: dict[str, int] = {}

    def add_lines(self, new_lines: Iterable[NewLine]) -> dict[str, int]:
        """Store lines not known yet; returns per job how many old ones had to go."""
        rows: dict[str, list[NewLine]] = {}
        sizes: Counter[str] = Counter()
        for line in new_lines:
            sizes[line.job] += line.bytes
            rows.setdefault(line.job, []).append(line)
        for job, new in rows.items():
            stored = self._db.executemany(_INSERT, new).rowcount
            # Where some were known already their bytes are not: all are counted anew, which is seldom.
            lines, bytes_ = self._sizes.pop(job, (0, -1))
            if bytes_ >= 0 and stored == len(new):
                self._sizes[job] = (lines + stored, bytes_ + sizes[job])
        return {job: gone for job in rows if (gone := self._trim(job))}

    def add_spans(self, spans: Iterable[SpanRecord]) -> None:
        """Store spans not known yet, the newest `max_spans` per job."""
        touched: set[str] = set()
        for s in spans:
            attributes = msgspec.msgpack.encode(dict(s.attributes))
            self._db.execute(
                "INSERT OR IGNORE INTO spans (job, trace_id, span_id, parent_span_id, name, start_ns, end_ns, "
                "attributes) VALUES (?,?,?,?,?,?,?,?)",
                (s.job, s.trace_id, s.span_id, s.parent_span_id, s.name, s.start_ns, s.end_ns, attributes),
            )
            touched.add(s.job)
        for job in touched:
            self._db.execute(
                "DELETE FROM spans WHERE job=?1 AND seq <= (SELECT seq FROM spans WHERE job=?1 ORDER BY seq DESC "
                "LIMIT 1 OFFSET ?2)",
                (job, self._max_spans),
            )

    def _trim(self, job: str) -> int:
        if job not in self._sizes:
            lines, bytes_ = self._db.execute(
                "SELECT count(*), ifnull(sum(bytes), 0) FROM logs WHERE job=?", (job,)
            ).fetchone()
            self._sizes[job] = (lines, bytes_)
        lines, bytes_ = self._sizes[job]
        if lines <= self._max_lines and bytes_ <= self._max_bytes:
            return 0
        gone, last = 0, 0
        # Some room is made at once, so that a chatty job does not pay for a deletion per line.
        keep_lines, keep_bytes = int(self._max_lines * _TRIM_TO), int(self._max_bytes * _TRIM_TO)
        for seq, size in self._db.execute("SELECT seq, bytes FROM logs WHERE job=? ORDER BY seq", (job,)):
            if lines <= keep_lines and bytes_ <= keep_bytes:
                break
            lines, bytes_, gone, last = lines - 1, bytes_ - size, gone + 1, seq
        self._db.execute("DELETE FROM logs WHERE job=? AND seq<=?", (job, last))
        self._sizes[job] = (lines, bytes_)
        return gone


def read_lines(
    db: sqlite3.Connection,
    job: str,
    *,
    ranks: Sequence[int] = (),
    contains: str = "",
    after: int = 0,
    tail: int = 0,
    limit: int = 1000,
) -> list[LineRow]:
    """Kept lines in the order in which they came.

    Args:
        db: a reading connection.
        job: whose lines.
        ranks: only these; none selects all.
        contains: only lines with this text, upper and lower case alike.
        after: only lines with a greater `seq`.
        tail: the newest so many, instead of the oldest `limit` after `after`.
        limit: at most this many.
    """
    where, values = "job=? AND seq>?", [job, after]
    if ranks:
        where += f" AND rank IN ({','.join('?' * len(ranks))})"
        values.extend(ranks)
    if contains:
        where += " AND instr(lower(text), lower(?)) > 0"
        values.append(contains)
    order, count = ("DESC", min(tail, limit)) if tail else ("ASC", limit)
    cursor = db.execute(f"SELECT seq, {COLUMNS} FROM logs WHERE {where} ORDER BY seq {order} LIMIT ?", (*values, count))
    rows = [line_row(row) for row in cursor]
    return rows[::-1] if tail else rows


def line_row(row: tuple[Any, ...]) -> LineRow:
    """A row of `seq` and the columns of a line."""
    return LineRow(**dict(zip(_FIELDS, row, strict=True)))
