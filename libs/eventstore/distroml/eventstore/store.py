"""The event store over any embedded back end's tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from distroml.events import Position, Recorded
from distroml.eventstore import limits
from distroml.eventstore import log as rules
from distroml.eventstore.errors import translated
from distroml.eventstore.log import LogTables, Place
from distroml.eventstore.port import (
    COMMAND_TTL_S,
    CommandRecord,
    Commit,
    Committed,
    Guard,
    Sealed,
)
from distroml.eventstore.subscription import LogSubscription
from distroml.statestore.tables import Database
from distroml.statestore.wake import Wake

T = TypeVar("T")
R = TypeVar("R")

START: Place = (0, -1)


class TableEventStore(Generic[T]):
    """`EventStore` on the embedded back ends. See the port for what it promises."""

    def __init__(self, database: Database[T], log_of: Callable[[T], LogTables]) -> None:
        self.database = database
        self._log_of = log_of
        self._closed = False

    @property
    def log_id(self) -> str:
        """Id of this log."""
        return self.database.log_id

    @property
    def wake(self) -> Wake:
        """What is notified of every commit."""
        return self.database.wake

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def commit(self, commit: Commit) -> Committed:
        """Write all of `commit` or none of it; on return it is durable.

        The checks, in order: bounds (`CommitRefused`), the command id (`CommandKnown`), guards (`Fenced`), expected
        versions (`WrongExpectedVersion`).
        """
        limits.check(commit)
        now_ms = self.database.clock.wall_ms()
        return await self._write(lambda log: rules.write(log, commit, self.log_id, now_ms))

    async def retire(
        self, stream: str, *, version: int, keys: Sequence[str] = (), guards: Sequence[Guard] = ()
    ) -> None:
        """Seal a finished stream: the parts of its state leave the live one, all or none."""
        limits.check_retiring(version, keys, guards)
        await self._write(lambda log: rules.retire(log, stream, version, keys, guards))

    async def sealed(self, stream: str) -> Sealed | None:
        """What a retired stream left behind; None where it is live, or does not exist."""
        return await self._read(lambda log: log.sealed(stream))

    async def read_stream(self, stream: str, *, after: int = 0, limit: int = 1000) -> Sequence[Recorded]:
        """Events of one stream with versions greater than `after`, oldest first."""
        return await self._read(lambda log: log.stream_events(self.log_id, stream, after, limit))

    async def read(
        self, *, after: Position | None = None, streams: Sequence[str] = (), limit: int = 1000
    ) -> Sequence[Recorded]:
        """Events after a position, oldest first; raises `ValueError` for another log's position."""
        return (await self.scan(self.place(after), streams, limit))[0]

    async def scan(self, after: Place, streams: Sequence[str], limit: int) -> tuple[Sequence[Recorded], Place]:
        """Events after a place, and the place up to which the log was looked through for them."""
        return await self._read(lambda log: log.events(self.log_id, after, streams, limit))

    async def head(self) -> Position:
        """The position of the newest event (revision 0 in an empty log)."""
        return Position(self.log_id, *await self._read(lambda log: log.newest()))

    async def version(self, stream: str) -> int:
        """The stream's committed version, retired or not; 0 where it does not exist."""
        return await self._read(lambda log: log.version(stream))

    async def streams(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Names of live streams that start with `prefix` and sort after `after`, in order."""
        return await self._read(lambda log: log.streams(prefix, after, limit))

    async def retired(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Names of retired streams that start with `prefix`, in order."""
        return await self._read(lambda log: log.retired(prefix, after, limit))

    async def parts(self, prefix: str) -> tuple[Mapping[str, bytes], int]:
        """Stored parts whose keys start with `prefix`, and the revision at which they were read together."""
        return await self._read(
            lambda log: ({entry.key: entry.value for entry in log.keys.entries(prefix)}, log.keys.revision)
        )

    async def command(self, id: str) -> CommandRecord | None:
        """The accepted command of this id, kept for `COMMAND_TTL_S`."""
        oldest_ms = self.database.clock.wall_ms() - COMMAND_TTL_S * 1000
        return await self._read(lambda log: log.command(id, oldest_ms))

    def subscribe(self, durable: str, *, streams: Sequence[str] = (), start: Position | None = None) -> LogSubscription:
        """Read on from the durable cursor of this name (from `start` where it has none yet)."""
        return LogSubscription(self, durable, tuple(streams), self.place(start))

    async def cursor(self, durable: str) -> Position | None:
        """Where the durable subscription stands: everything up to there is acknowledged."""
        place = await self._read(lambda log: log.cursor(durable))
        return None if place is None else Position(self.log_id, *place)

    async def open_cursor(self, durable: str, start: Place) -> Place:
        """The cursor of a durable subscription, made at `start` where there is none."""
        found = await self._read(lambda log: log.cursor(durable))
        if found is not None:
            return found
        await self._write(lambda log: rules.move_cursor(log, durable, start))
        return start

    async def move_cursor(self, durable: str, position: Position) -> None:
        """Move a durable cursor forward to `position`; never back."""
        place = self.place(position)
        await self._write(lambda log: rules.move_cursor(log, durable, place))

    async def close(self) -> None:
        """Finish what was accepted, end subscriptions, then release what the store holds."""
        if self._closed:
            return
        self._closed = True
        self.database.wake.notify()
        await self.database.close()

    def place(self, position: Position | None) -> Place:
        """The place of a position in this log; raises `ValueError` for another log's."""
        if position is None:
            return START
        if position.log != self.log_id:
            raise ValueError(f"position {position} belongs to log {position.log!r}, this is {self.log_id!r}")
        return position.revision, position.index

    async def _read(self, run: Callable[[LogTables], R]) -> R:
        return await self._translated(self.database.read(lambda tables: run(self._log_of(tables))))

    async def _write(self, run: Callable[[LogTables], R]) -> R:
        return await self._translated(self.database.write(lambda tables: run(self._log_of(tables))))

    async def _translated(self, call: Awaitable[R]) -> R:
        with translated():
            return await call
