"""Checking a whole log against its chain of hashes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from distroml.eventstore.errors import translated
from distroml.eventstore.sqlite.tables import chain, check_sum
from distroml.eventstore.store import TableEventStore
from distroml.statestore.sqlite.schema import INDEX_BITS
from distroml.statestore.sqlite.tables import SqliteTables

_BATCH = 500
_Commit = tuple[int, bytes, bytes, list[tuple[Any, ...]]]
"""A commit row, revision, context and hash, with its event rows: as bytes, since damaged text does not decode."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One commit that is not what was written; `revision` 0 stands for the log's end."""

    revision: int
    what: str


async def verify_log(store: TableEventStore[SqliteTables]) -> list[Damage]:
    """Every commit whose rows do not have the hash they were written with; empty means the log is whole.

    Reads the log in batches of one snapshot each; commits made meanwhile are checked as far as they are met.
    """
    found: list[Damage] = []
    before, revision = b"", 0
    async for rows in _batches(store):
        for revision, context, stored, events in rows:
            for row in events:
                *said, crc = row
                if check_sum(*said) != crc:
                    found.append(Damage(revision, f"event {said[0]} version {said[1]} has a wrong checksum"))
            if chain(before, revision, context, [tuple(row[:-1]) for row in events]) != stored:
                found.append(Damage(revision, "its hash does not follow from its events and the commit before it"))
            # Going on from what is stored names each damaged commit once instead of all that follow.
            before = stored
    with translated():
        newest, last = await store.database.read(
            lambda tables: (
                tables.chain,
                tables.query("SELECT revision FROM commits ORDER BY revision DESC LIMIT 1"),
            )
        )
    if (not last or last[0][0] == revision) and newest != before:
        found.append(Damage(0, "the newest commits are missing"))
    return found


async def _batches(
    store: TableEventStore[SqliteTables],
) -> AsyncIterator[list[_Commit]]:
    after = 0
    while True:
        with translated():
            rows = await store.database.read(lambda tables, start=after: _read(tables, start))
        if not rows:
            return
        yield rows
        after = rows[-1][0]


def _read(tables: SqliteTables, after: int) -> list[_Commit]:
    commits = tables.query(
        "SELECT revision, CAST(context AS BLOB), hash FROM commits WHERE revision > ? ORDER BY revision LIMIT ?",
        (after, _BATCH),
    )
    if not commits:
        return []
    events: dict[int, list[tuple[Any, ...]]] = {}
    for seq, *row in tables.query(
        "SELECT seq, CAST(stream AS BLOB), version, CAST(id AS BLOB), CAST(type AS BLOB), schema, public, data, crc"
        " FROM events WHERE seq >= ? AND seq < ? ORDER BY seq",
        (after + 1 << INDEX_BITS, commits[-1][0] + 1 << INDEX_BITS),
    ):
        stream, version, id, type_, schema, public, data, crc = row
        names = (stream.decode(errors="replace"), version, id.decode(errors="replace"), type_.decode(errors="replace"))
        events.setdefault(seq >> INDEX_BITS, []).append((*names, schema, bool(public), data, crc))
    return [(revision, context, hash, events.pop(revision, [])) for revision, context, hash in commits]
