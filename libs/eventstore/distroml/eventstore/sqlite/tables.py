"""The log as SQLite rows, inside one transaction.

Two checks guard the bytes: every event row has a CRC-32 that reading verifies, so damage is never folded into
state, and every commit row has a SHA-256 over the one before it and all its events, so that `verify_log` also
finds rows that were removed or exchanged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import msgspec

from distroml.events import Context, NewEvent, Position, Recorded
from distroml.eventstore.log import Place
from distroml.eventstore.port import CommandRecord, Sealed, StoreDamaged
from distroml.statestore.sqlite.schema import INDEX_BITS
from distroml.statestore.sqlite.tables import SqliteTables
from distroml.statestore.tables import Tables

_COLUMNS = "e.seq, e.stream, e.version, e.id, e.type, e.schema, e.public, e.data, e.crc, c.context"
_FROM = f"SELECT {_COLUMNS} FROM events e LEFT JOIN commits c ON c.revision = e.seq >> {INDEX_BITS}"
_INDEX_MASK = (1 << INDEX_BITS) - 1
_LAST = "\U0010ffff"
_context = msgspec.json.Decoder(Context)
_parts = msgspec.msgpack.Decoder(dict[str, bytes])


def seq_of(place: Place) -> int:
    """The row id of a place; (0, -1), the place before everything, is row -1."""
    # "After the whole commit" is said with an index past its last event: it must not reach into later commits.
    return (place[0] << INDEX_BITS) + min(place[1], _INDEX_MASK)


def place_of(seq: int) -> Place:
    """The place of a row id."""
    return (0, -1) if seq < 0 else (seq >> INDEX_BITS, seq & _INDEX_MASK)


def check_sum(stream: str, version: int, id: str, type: str, schema: int, public: bool, data: bytes) -> int:
    """The CRC-32 of all that an event row says."""
    return crc32(data, crc32(f"{stream}\n{version}\n{id}\n{type}\n{schema}\n{public:d}".encode()))


def chain(
    before: bytes, revision: int, context: bytes, events: Sequence[tuple[str, int, str, str, int, bool, bytes]]
) -> bytes:
    """The hash of a commit: of the one before it, and of everything it wrote to the log."""
    return hashlib.sha256(before + msgspec.msgpack.encode((revision, context, events))).digest()


class SqliteLog:
    """Rows through the transaction's connection."""

    def __init__(self, tables: SqliteTables) -> None:
        self._tables = tables
        self.keys: Tables = tables

    def version(self, stream: str) -> int:
        """The stream's version."""
        rows = self._tables.query("SELECT version FROM streams WHERE stream = ?", (stream,))
        return rows[0][0] if rows else 0

    def add(self, revision: int, context: Context, events: Sequence[tuple[str, int, NewEvent]]) -> None:
        """Append rows under one revision, chained to the commit before."""
        encoded = msgspec.json.encode(context)
        rows = [(s, v, e.id, e.type, e.schema, e.public, e.data) for s, v, e in events]
        self._tables.chain = chain(self._tables.chain, revision, encoded, rows)
        self._tables.execute("INSERT INTO commits VALUES (?, ?, ?)", (revision, encoded.decode(), self._tables.chain))
        for seq, row in enumerate(rows, start=revision << INDEX_BITS):
            self._tables.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (seq, *row, check_sum(*row)))
        versions = {stream: version for stream, version, _ in events}
        self._tables.executemany("INSERT OR REPLACE INTO streams VALUES (?, ?)", list(versions.items()))

    def stream_events(self, log: str, stream: str, after: int, limit: int) -> list[Recorded]:
        """Events of one stream after a version."""
        statement = f"{_FROM} WHERE e.stream = ? AND e.version > ? ORDER BY e.version LIMIT ?"
        return _recorded(log, self._tables.query(statement, (stream, after, limit)))

    def events(self, log: str, after: Place, patterns: Sequence[str], limit: int) -> tuple[list[Recorded], Place]:
        """Events after a place, and the place up to which the log was looked through."""
        selection, values = _selection(patterns)
        statement = f"{_FROM} WHERE e.seq > ?{selection} ORDER BY e.seq LIMIT ?"
        rows = self._tables.query(statement, (seq_of(after), *values, limit))
        scanned = place_of(rows[-1][0]) if len(rows) == limit else max(after, self.newest())
        return _recorded(log, rows), scanned

    def newest(self) -> Place:
        """The place of the newest event."""
        ((seq,),) = self._tables.query("SELECT max(seq) FROM events")
        return place_of(seq or 0)

    def streams(self, prefix: str, after: str, limit: int) -> list[str]:
        """Names of streams below a prefix that are not sealed."""
        rows = self._tables.query(
            "SELECT stream FROM streams WHERE stream >= ? AND stream < ? AND stream > ?"
            " AND NOT EXISTS (SELECT 1 FROM sealed WHERE sealed.stream = streams.stream) ORDER BY stream LIMIT ?",
            (prefix, prefix + _LAST, after, limit),
        )
        return [stream for (stream,) in rows]

    def retired(self, prefix: str, after: str, limit: int) -> list[str]:
        """Names of sealed streams below a prefix."""
        rows = self._tables.query(
            "SELECT stream FROM sealed WHERE stream >= ? AND stream < ? AND stream > ? ORDER BY stream LIMIT ?",
            (prefix, prefix + _LAST, after, limit),
        )
        return [stream for (stream,) in rows]

    def sealed(self, stream: str) -> Sealed | None:
        """What the stream left behind where it is sealed."""
        rows = self._tables.query("SELECT version, parts FROM sealed WHERE stream = ?", (stream,))
        return Sealed(rows[0][0], _parts.decode(rows[0][1])) if rows else None

    def seal(self, stream: str, sealed: Sealed) -> None:
        """Write what it leaves behind."""
        parts = msgspec.msgpack.encode(sealed.parts)
        self._tables.execute("INSERT INTO sealed VALUES (?, ?, ?)", (stream, sealed.version, parts))

    def unseal(self, stream: str) -> None:
        """Forget what it left behind."""
        self._tables.execute("DELETE FROM sealed WHERE stream = ?", (stream,))

    def command(self, id: str, oldest_ms: int) -> CommandRecord | None:
        """The record of a command accepted at or after `oldest_ms`."""
        rows = self._tables.query(
            "SELECT id, content_hash, answer FROM commands WHERE id = ? AND at_ms >= ?", (id, oldest_ms)
        )
        return CommandRecord(*rows[0]) if rows else None

    def put_command(self, record: CommandRecord, at_ms: int) -> None:
        """Write a command record."""
        self._tables.execute(
            "INSERT OR REPLACE INTO commands VALUES (?, ?, ?, ?)",
            (record.id, record.content_hash, record.answer, at_ms),
        )

    def prune_commands(self, oldest_ms: int, limit: int) -> None:
        """Forget at most `limit` old records."""
        self._tables.execute(
            "DELETE FROM commands WHERE id IN (SELECT id FROM commands WHERE at_ms < ? ORDER BY at_ms LIMIT ?)",
            (oldest_ms, limit),
        )

    def cursor(self, name: str) -> Place | None:
        """Where the durable subscription stands."""
        rows = self._tables.query("SELECT seq FROM cursors WHERE name = ?", (name,))
        return place_of(rows[0][0]) if rows else None

    def set_cursor(self, name: str, place: Place) -> None:
        """Write where it stands."""
        self._tables.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?)", (name, seq_of(place)))


def _selection(patterns: Sequence[str]) -> tuple[str, list[str]]:
    """`distroml.events.matches` as SQL."""
    clauses: list[str] = []
    values: list[str] = []
    for pattern in patterns:
        if pattern.endswith("/"):
            clauses.append("(e.stream >= ? AND e.stream < ?)")
            values += [pattern, pattern + _LAST]
        else:
            clauses.append("e.stream = ?")
            values.append(pattern)
    return (f" AND ({' OR '.join(clauses)})" if clauses else ""), values


def _recorded(log: str, rows: Sequence[Any]) -> list[Recorded]:
    """Rows to events; raises `StoreDamaged` where one is not what was written."""
    found: list[Recorded] = []
    revision, context = -1, None
    for seq, stream, version, id, type_, schema, public, data, crc, encoded in rows:
        position = Position(log, seq >> INDEX_BITS, seq & _INDEX_MASK)
        try:
            if check_sum(stream, version, id, type_, schema, public, data) != crc:
                raise ValueError("its checksum does not match")
            if context is None or position.revision != revision:
                revision, context = position.revision, _context.decode(encoded)
        except (ValueError, TypeError) as error:
            raise StoreDamaged(
                f"the event at {position} is damaged ({error}); restore the store's file from a backup or the sealed"
                " segments, and do not go on from this state"
            ) from error
        found.append(
            Recorded(
                id=id,
                type=type_,
                schema=schema,
                public=bool(public),
                data=data,
                stream=stream,
                version=version,
                position=position,
                context=context,
            )
        )
    return found
