"""The port for searching lines over the embedded store: bounded per job, so a search may look at every line of one."""

from __future__ import annotations

import sqlite3

from distroml.logstore import Line, Page, Query
from distroml.logstore.port import page_of
from distroml.logstore.words import matches
from distroml.telemetry.adapters.logs import COLUMNS, line_row
from distroml.telemetry.readmodel import ReadModel

# Equal to the end of `Line.id`, which lines are ordered by last.
_PLACE = "worker || '/' || incarnation || '/' || stream || '/' || offset"


class EmbeddedLogSearch:
    """`LogSearch` over what the read model keeps."""

    def __init__(self, model: ReadModel) -> None:
        self._model = model

    async def search(self, query: Query) -> Page:
        """See `LogSearch`."""
        return await self._model.read(search_lines, query)


def search_lines(db: sqlite3.Connection, query: Query) -> Page:
    """One page of kept lines."""
    where, values = _conditions(query)
    order = "DESC" if query.newest_first else "ASC"
    cursor = db.execute(
        f"SELECT seq, {COLUMNS} FROM logs WHERE {' AND '.join(where)} "
        f"ORDER BY at_ms {order}, offset {order}, {_PLACE} {order}",
        values,
    )
    found: list[Line] = []
    for values in cursor:
        row = line_row(values)
        if query.phrases and not matches(row.text, query.phrases):
            continue
        found.append(
            Line(
                job=query.job,
                worker=row.worker,
                incarnation=row.incarnation,
                stream=row.stream,
                offset=row.offset,
                rank=row.rank,
                generation=row.generation,
                attempt=row.attempt,
                at_ms=row.at_ms,
                text=row.text,
                level=row.level,
                trace_id=row.trace_id,
                span_id=row.span_id,
            )
        )
        if len(found) > query.limit:
            break
    return page_of(found, query.limit)


def _conditions(query: Query) -> tuple[list[str], list[object]]:
    where = ["job = ?", "at_ms >= ?"]
    values: list[object] = [query.job, query.since_ms]
    if query.until_ms:
        where.append("at_ms < ?")
        values.append(query.until_ms)
    for column, chosen in (("rank", query.ranks), ("level", query.levels)):
        if chosen:
            where.append(f"{column} IN ({','.join('?' * len(chosen))})")
            values += chosen
    for word in {word for phrase in query.phrases for word in phrase if word.isascii()}:
        # SQLite knows the case of ASCII letters only; which words are whole is seen afterwards.
        where.append("instr(lower(text), ?) > 0")
        values.append(word)
    if query.after is not None:
        beyond = "<" if query.newest_first else ">"
        where.append(f"(at_ms, offset, {_PLACE}) {beyond} (?, ?, ?)")
        values += [query.after.at_ms, query.after.offset, query.after.id.removeprefix(f"{query.job}/")]
    return where, values
