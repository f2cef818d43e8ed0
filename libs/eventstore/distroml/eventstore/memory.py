"""The event log in this process's memory; see `distroml.statestore.memory` for the database it shares."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Sequence
from itertools import islice

from distroml.events import Context, NewEvent, Position, Recorded, matches
from distroml.eventstore.log import LogTables, Place, recorded
from distroml.eventstore.port import CommandRecord, Sealed
from distroml.eventstore.store import TableEventStore
from distroml.statestore.memory import MemoryDatabase, MemoryTables
from distroml.statestore.tables import Tables

__all__ = ["MemoryDatabase", "open_event_store"]


class _Rows:
    """The log's own rows, kept beside the key space's."""

    def __init__(self) -> None:
        self.events: list[Recorded] = []
        self.places: list[Place] = []
        self.streams: dict[str, list[Recorded]] = {}
        self.names: list[str] = []
        self.sealed: dict[str, Sealed] = {}
        self.commands: dict[str, tuple[CommandRecord, int]] = {}
        self.cursors: dict[str, Place] = {}


class MemoryLog:
    """The log as lists. The rules check before they write, so nothing has to be undone."""

    def __init__(self, tables: MemoryTables, log_id: str) -> None:
        self.keys: Tables = tables
        self._rows = tables.extension(_Rows)
        self._log_id = log_id

    def version(self, stream: str) -> int:
        """The stream's version."""
        return len(self._rows.streams.get(stream, ()))

    def add(self, revision: int, context: Context, events: Sequence[tuple[str, int, NewEvent]]) -> None:
        """Append rows under one revision."""
        for index, (stream, version, event) in enumerate(events):
            row = recorded(event, stream, version, Position(self._log_id, revision, index), context)
            if stream not in self._rows.streams:
                self._rows.streams[stream] = []
                insort(self._rows.names, stream)
            self._rows.streams[stream].append(row)
            self._rows.events.append(row)
            self._rows.places.append((revision, index))

    def stream_events(self, log: str, stream: str, after: int, limit: int) -> list[Recorded]:
        """Events of one stream after a version."""
        del log
        return self._rows.streams.get(stream, [])[max(after, 0) : max(after, 0) + limit]

    def events(self, log: str, after: Place, patterns: Sequence[str], limit: int) -> tuple[list[Recorded], Place]:
        """Events after a place, and the place up to which the log was looked through."""
        del log
        found: list[Recorded] = []
        for i in range(bisect_right(self._rows.places, after), len(self._rows.events)):
            row = self._rows.events[i]
            if patterns and not any(matches(pattern, row.stream) for pattern in patterns):
                continue
            if len(found) == limit:
                return found, _place(found[-1])
            found.append(row)
        return found, max(after, self.newest())

    def newest(self) -> Place:
        """The place of the newest event."""
        return self._rows.places[-1] if self._rows.places else (0, 0)

    def streams(self, prefix: str, after: str, limit: int) -> list[str]:
        """Names of streams below a prefix that are not sealed."""
        start, sealed = bisect_right(self._rows.names, after), self._rows.sealed
        return [name for name in self._rows.names[start:] if name.startswith(prefix) and name not in sealed][:limit]

    def retired(self, prefix: str, after: str, limit: int) -> list[str]:
        """Names of sealed streams below a prefix."""
        return sorted(name for name in self._rows.sealed if name.startswith(prefix) and name > after)[:limit]

    def sealed(self, stream: str) -> Sealed | None:
        """What the stream left behind where it is sealed."""
        return self._rows.sealed.get(stream)

    def seal(self, stream: str, sealed: Sealed) -> None:
        """Write what it leaves behind."""
        self._rows.sealed[stream] = sealed

    def unseal(self, stream: str) -> None:
        """Forget what it left behind."""
        del self._rows.sealed[stream]

    def command(self, id: str, oldest_ms: int) -> CommandRecord | None:
        """The record of a command accepted at or after `oldest_ms`."""
        record, at_ms = self._rows.commands.get(id, (None, 0))
        return record if at_ms >= oldest_ms else None

    def put_command(self, record: CommandRecord, at_ms: int) -> None:
        """Write a command record."""
        self._rows.commands.pop(record.id, None)
        self._rows.commands[record.id] = (record, at_ms)

    def prune_commands(self, oldest_ms: int, limit: int) -> None:
        """Forget at most `limit` old records; the dictionary is in order of age."""
        for id in list(islice(self._rows.commands, limit)):
            if self._rows.commands[id][1] < oldest_ms:
                del self._rows.commands[id]

    def cursor(self, name: str) -> Place | None:
        """Where the durable subscription stands."""
        return self._rows.cursors.get(name)

    def set_cursor(self, name: str, place: Place) -> None:
        """Write where it stands."""
        self._rows.cursors[name] = place


def _place(row: Recorded) -> Place:
    return row.position.revision, row.position.index


def open_event_store(database: MemoryDatabase | None = None, *, deployment: str = "") -> TableEventStore[MemoryTables]:
    """An event store in memory; give it the state store's database to share keys and revisions."""
    shared = database or MemoryDatabase(deployment)
    shared.join()

    def log_of(tables: MemoryTables) -> LogTables:
        return MemoryLog(tables, shared.log_id)

    return TableEventStore(shared, log_of)
