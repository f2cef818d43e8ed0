"""What a back end stores of the log, and the rules of a commit over it: written once for every embedded back end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from distroml.events import Context, NewEvent, Position, Recorded
from distroml.eventstore.limits import check_coming_back, check_sealed
from distroml.eventstore.port import (
    COMMAND_TTL_S,
    CommandKnown,
    CommandRecord,
    Commit,
    Committed,
    Fenced,
    Guard,
    Sealed,
    WrongExpectedVersion,
    state_prefix,
)
from distroml.statestore.port import Entry
from distroml.statestore.tables import Tables

Place = tuple[int, int]
"""(revision, index): a position without its log."""

PRUNE_LIMIT = 4
"""Old command records that one commit forgets at most: more than the one it adds, so the backlog shrinks."""


class LogTables(Protocol):
    """The log inside one transaction."""

    @property
    def keys(self) -> Tables:
        """The key space of the same transaction."""
        ...

    def version(self, stream: str) -> int:
        """The stream's version, 0 where it does not exist."""
        ...

    def add(self, revision: int, context: Context, events: Sequence[tuple[str, int, NewEvent]]) -> None:
        """Append (stream, version, event) rows under one revision, in order, and move the streams' versions."""
        ...

    def stream_events(self, log: str, stream: str, after: int, limit: int) -> list[Recorded]:
        """Events of one stream after a version."""
        ...

    def events(self, log: str, after: Place, patterns: Sequence[str], limit: int) -> tuple[list[Recorded], Place]:
        """Events after a place, and the place up to which the log was looked through."""
        ...

    def newest(self) -> Place:
        """The place of the newest event, (0, 0) in an empty log."""
        ...

    def streams(self, prefix: str, after: str, limit: int) -> list[str]:
        """Names of streams below a prefix that are not sealed, in order."""
        ...

    def retired(self, prefix: str, after: str, limit: int) -> list[str]:
        """Names of sealed streams below a prefix, in order."""
        ...

    def sealed(self, stream: str) -> Sealed | None:
        """What the stream left behind where it is sealed."""
        ...

    def seal(self, stream: str, sealed: Sealed) -> None:
        """Write what it leaves behind."""
        ...

    def unseal(self, stream: str) -> None:
        """Forget what it left behind."""
        ...

    def command(self, id: str, oldest_ms: int) -> CommandRecord | None:
        """The record of a command accepted at or after `oldest_ms`."""
        ...

    def put_command(self, record: CommandRecord, at_ms: int) -> None:
        """Write a command record."""
        ...

    def prune_commands(self, oldest_ms: int, limit: int) -> None:
        """Forget at most `limit` records from before `oldest_ms`."""
        ...

    def cursor(self, name: str) -> Place | None:
        """Where the durable subscription stands."""
        ...

    def set_cursor(self, name: str, place: Place) -> None:
        """Write where it stands."""
        ...


def write(tables: LogTables, commit: Commit, log: str, now_ms: int) -> Committed:
    """The body of a commit's transaction. All checks come before the first write.

    A repeated command is noticed before everything else: its streams have moved on since.
    """
    oldest_ms = now_ms - COMMAND_TTL_S * 1000
    if commit.command is not None and (known := tables.command(commit.command.id, oldest_ms)) is not None:
        raise CommandKnown(known)
    _check_guards(tables, commit.guards)
    for append in commit.appends:
        actual = tables.version(append.stream)
        if actual != append.expected:
            raise WrongExpectedVersion(append.stream, append.expected, actual)
    sealed = ((append.stream, tables.sealed(append.stream)) for append in commit.appends)
    coming_back = {stream: one for stream, one in sealed if one is not None}
    check_coming_back(coming_back.values())

    revision = tables.keys.advance()
    rows = [
        (append.stream, append.expected + nth, event)
        for append in commit.appends
        for nth, event in enumerate(append.events, start=1)
    ]
    if rows:
        tables.add(revision, commit.context, rows)
    own = {part.key for part in commit.parts}
    for stream, one in coming_back.items():
        tables.unseal(stream)
        for key, value in one.parts.items():
            if key not in own:
                tables.keys.put(Entry(key, value, revision))
    for part in commit.parts:
        if part.value is not None:
            tables.keys.put(Entry(part.key, part.value, revision))
        elif tables.keys.entry(part.key) is not None:
            tables.keys.remove(part.key, revision)
    if commit.command is not None:
        tables.put_command(commit.command, now_ms)
        tables.prune_commands(oldest_ms, PRUNE_LIMIT)
    return Committed(
        revision,
        tuple(
            recorded(event, stream, version, Position(log, revision, index), commit.context)
            for index, (stream, version, event) in enumerate(rows)
        ),
    )


def retire(tables: LogTables, stream: str, version: int, keys: Sequence[str], guards: Sequence[Guard]) -> None:
    """The body of the transaction that retires a stream; all checks come before the first write."""
    _check_guards(tables, guards)
    if (actual := tables.version(stream)) != version:
        raise WrongExpectedVersion(stream, version, actual)
    if tables.sealed(stream) is not None:
        return
    found = {entry.key: entry.value for entry in tables.keys.entries(state_prefix(stream))}
    found |= {entry.key: entry.value for key in keys if (entry := tables.keys.entry(key)) is not None}
    check_sealed(stream, found)
    revision = tables.keys.advance()
    for key in found:
        tables.keys.remove(key, revision)
    tables.seal(stream, Sealed(version, found))


def _check_guards(tables: LogTables, guards: Sequence[Guard]) -> None:
    for guard in guards:
        if not _holds(guard, tables.keys.entry(guard.key)):
            raise Fenced(guard.key)


def _holds(guard: Guard, entry: Entry | None) -> bool:
    if guard.revision is not None:
        return guard.revision == (0 if entry is None else entry.revision)
    return entry is not None and entry.value == guard.value


def recorded(event: NewEvent, stream: str, version: int, position: Position, context: Context) -> Recorded:
    """The committed form of an event."""
    return Recorded(
        id=event.id,
        type=event.type,
        schema=event.schema,
        public=event.public,
        data=event.data,
        stream=stream,
        version=version,
        position=position,
        context=context,
    )


def move_cursor(tables: LogTables, name: str, place: Place) -> None:
    """Move a cursor forward; an acknowledgement out of order never moves it back."""
    current = tables.cursor(name)
    if current is None or current < place:
        tables.set_cursor(name, place)
