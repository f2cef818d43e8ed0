"""The event store port: one transaction for a decision, then reading and subscribing.

A commit writes events of one or several streams, changed parts of their state, and the answer to the command,
all or nothing, under expected versions and guards. The port promises what etcd and JetStream can keep: no range
read inside a commit, subscriptions that lag and repeat, positions known only after the commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from distroml.events import Context, NewEvent, Position, Recorded

MAX_EVENT_BYTES = 64 * 1024
MAX_COMMIT_OPERATIONS = 100
MAX_COMMIT_BYTES = 1024 * 1024
MAX_SEALED_PARTS = 24
MAX_SEALED_BYTES = 384 * 1024
"""What a retired stream may bring back into the largest commit, within what one transaction of etcd holds."""
COMMAND_TTL_S = 24 * 3600


class EventStoreError(Exception):
    """Root of what an event store raises.

    EventStoreError
    ├── WrongExpectedVersion   a stream moved on: read again and decide again
    ├── Fenced                 a guard did not hold: this writer has been replaced
    ├── CommandKnown           the command id was accepted before: give its answer again, or refuse other content
    ├── CommitRefused          the commit itself is malformed or past a bound
    ├── NotSealable            a stream cannot be retired yet: its events are only in the outbox; try later
    ├── StoreFull              the log cannot take more now (disk full, outbox full)
    ├── StoreDamaged           the stored data cannot be trusted; says which file and what to do
    └── StoreDown              the back end did not answer; nothing is known about the outcome
    """


class WrongExpectedVersion(EventStoreError):
    """A stream is not at the version that the decision was made on."""

    def __init__(self, stream: str, expected: int, actual: int) -> None:
        super().__init__(f"{stream} is at version {actual}, expected {expected}")
        self.stream, self.expected, self.actual = stream, expected, actual


class Fenced(EventStoreError):
    """A guard of the commit did not hold."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the commit is fenced off: {key!r} changed")
        self.key = key


@dataclass(frozen=True, slots=True)
class CommandRecord:
    """An accepted command: its id, a hash of its content, and the answer that was given."""

    id: str
    content_hash: bytes
    answer: bytes


class CommandKnown(EventStoreError):
    """The command id was accepted before; `record` is what was stored then."""

    def __init__(self, record: CommandRecord) -> None:
        super().__init__(f"command {record.id} was accepted before")
        self.record = record


class CommitRefused(EventStoreError):
    """The commit is past a bound or contradicts itself; it can never succeed as it is."""


class NotSealable(EventStoreError):
    """The stream's events are not all in the sealed copy of the log yet, without which it cannot leave the state."""

    def __init__(self, stream: str, revision: int, sealed: int) -> None:
        super().__init__(
            f"{stream} cannot be retired yet: its last commit has revision {revision}, and the log is sealed up to"
            f" {sealed}; try again in a minute, and where it stays so see what holds the relay up"
        )
        self.stream, self.revision, self.sealed = stream, revision, sealed


class StoreFull(EventStoreError):
    """Nothing was written: there is no room."""


class StoreDamaged(EventStoreError):
    """The stored data fails its own checks."""


class StoreDown(EventStoreError):
    """The back end cannot be reached or failed in the middle."""


@dataclass(frozen=True, slots=True)
class Append:
    """Events for one stream, valid only if its version is still `expected` (0: the stream is new).

    Without events it only holds the commit to that version.
    """

    stream: str
    expected: int
    events: tuple[NewEvent, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A changed part of stored state; None deletes the key. Writing it unbinds the key from any lease."""

    key: str
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Guard:
    """The commit holds only while `key` was last written at `revision` (0: is absent), or has `value`.

    Exactly one of the two is given. A lease's fence is the revision at which its key was created; a job's fence
    is the value of `fences/<job>`.
    """

    key: str
    revision: int | None = None
    value: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """One decision."""

    context: Context
    appends: tuple[Append, ...] = ()
    parts: tuple[Part, ...] = ()
    guards: tuple[Guard, ...] = ()
    command: CommandRecord | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit came to: its revision, and the recorded events in the order of the appends."""

    revision: int
    events: tuple[Recorded, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a retired stream left behind: its version, and the parts that left the state, under their whole keys."""

    version: int
    parts: Mapping[str, bytes]


def state_prefix(stream: str) -> str:
    """Where the parts of a stream's state are kept; no other stream's keys start with it."""
    return f"state/{stream}:"


class Subscription(Protocol):
    """A durable reader. Iterate for events in log order; acknowledge to move its cursor.

    After a crash everything past the last acknowledged position comes again.
    """

    def __aiter__(self) -> AsyncIterator[Recorded]:
        """Events from the cursor on, waiting for new ones."""
        ...

    async def ack(self, recorded: Recorded) -> None:
        """Everything up to and including `recorded` is done with."""
        ...

    async def close(self) -> None:
        """Stop; the cursor stays."""
        ...


class EventStore(Protocol):
    """The log and the state committed with it."""

    @property
    def log_id(self) -> str:
        """Id of this log; the `log` of its positions."""
        ...

    async def commit(self, commit: Commit) -> Committed:
        """Write all of `commit` or none of it; on return it is durable.

        Raises:
            WrongExpectedVersion, Fenced, CommandKnown, CommitRefused, StoreFull, StoreDown: nothing was written
                (for StoreDown: it is not known whether; a command id makes trying again safe).
        """
        ...

    async def retire(
        self, stream: str, *, version: int, keys: Sequence[str] = (), guards: Sequence[Guard] = ()
    ) -> None:
        """Seal a finished stream: the parts of its state leave the live one, all or none. Repeating it changes nothing.

        Afterwards `version`, `command` and everything that reads the log answer as before; `parts` and `streams`
        no longer tell of it, and `sealed` does. A commit that expects its version brings it back with its parts, of
        which those that the commit writes itself are the commit's; one that expects another version is refused.

        Args:
            stream: its name.
            version: at which it is finished, 1 or more.
            keys: that belonged to it alone, such as `fences/<job>`: they leave, and come back, with the parts.
            guards: it holds only while these do.

        Raises:
            WrongExpectedVersion, Fenced, NotSealable, StoreFull: nothing was changed.
            CommitRefused: it has more parts than may ever come back (`MAX_SEALED_PARTS`, `MAX_SEALED_BYTES`).
            StoreDown: it is not known whether it was retired; trying again is safe.
        """
        ...

    async def sealed(self, stream: str) -> Sealed | None:
        """What a retired stream left behind; None where it is live, or does not exist."""
        ...

    async def read_stream(self, stream: str, *, after: int = 0, limit: int = 1000) -> Sequence[Recorded]:
        """Events of one stream with versions greater than `after`, oldest first."""
        ...

    async def read(
        self, *, after: Position | None = None, streams: Sequence[str] = (), limit: int = 1000
    ) -> Sequence[Recorded]:
        """Events after a position, oldest first.

        Args:
            after: None for the beginning.
            streams: patterns (`distroml.events.matches`); none selects everything.
            limit: at most this many.

        Raises:
            ValueError: `after` belongs to another log.
        """
        ...

    async def head(self) -> Position:
        """The position of the newest event (revision 0 in an empty log): reading after it finds nothing yet."""
        ...

    async def version(self, stream: str) -> int:
        """The stream's committed version, retired or not; 0 where it does not exist."""
        ...

    async def streams(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Names of live streams that start with `prefix` and sort after `after`, in order."""
        ...

    async def retired(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Names of retired streams that start with `prefix`, in an order of the store's own.

        Args:
            prefix: of the names.
            after: the last name of the page before.
            limit: at most this many.
        """
        ...

    async def parts(self, prefix: str) -> tuple[Mapping[str, bytes], int]:
        """Stored parts whose keys start with `prefix`, and the revision at which they were read together."""
        ...

    async def command(self, id: str) -> CommandRecord | None:
        """The accepted command of this id, kept for `COMMAND_TTL_S`."""
        ...

    def subscribe(self, durable: str, *, streams: Sequence[str] = (), start: Position | None = None) -> Subscription:
        """Read on from the durable cursor of this name (from `start` where it has none yet)."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then release what the store holds."""
        ...
