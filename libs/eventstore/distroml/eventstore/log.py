"""What a back end stores of the log, and the rules of a commit over it: written once for every embedded back end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from distroml.events import Context, NewEvent, Position, Recorded
from distroml.eventstore.port import (
    COMMAND_TTL_S,
    CommandKnown,
    CommandRecord,
    Commit,
    Committed,
    Fenced,
    Guard,
    WrongExpectedVersion,
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
        """Names of streams below a prefix, in order."""
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
    for guard in commit.guards:
        if not _holds(guard, tables.keys.entry(guard.key)):
            raise Fenced(guard.key)
    for append in commit.appends:
        actual = tables.version(append.stream)
        if actual != append.expected:
            raise WrongExpectedVersion(append.stream, append.expected, actual)

    revision = tables.keys.advance()
    rows = [
        (append.stream, append.expected + nth, event)
        for append in commit.appends
        for nth, event in enumerate(append.events, start=1)
    ]
    if rows:
        tables.add(revision, commit.context, rows)
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
