"""The ports of the relay: the outbox that it empties, and the log that it fills.

The outbox holds the commits that the log may not hold yet, in the order of their revisions, without a gap. A commit
enters it in the transaction that makes it, and leaves it only by `trim`, once the log and the sealed segments both hold
it. So whoever reads the log up to a revision, and then the outbox after it, has seen everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from distroml.events import Recorded
from distroml.eventstore.log import Place


class OutboxTrimmed(Exception):
    """Commits after the asked revision have left the outbox: the log and the segments hold them."""

    def __init__(self, after: int, trimmed: int) -> None:
        super().__init__(
            f"the outbox was trimmed up to revision {trimmed}, asked for after {after}: read the rest from the log"
        )
        self.after, self.trimmed = after, trimmed


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One commit that wrote events: its revision, and all its events in the order of their indices."""

    revision: int
    events: tuple[Recorded, ...]


class Outbox(Protocol):
    """The commits between the committed state and the log.

    Any call may raise `StoreDown`; nothing is known about its outcome then, and each may be made again.
    """

    def told(self, *, after: int, limit: int) -> Sequence[OutboxEntry] | None:
        """The next commits after a revision, as far as this process was told of them by itself: costs no question.

        There may be more. None where some of them may not be held here: then `pending` knows.
        """
        ...

    async def pending(self, *, after: int, limit: int) -> Sequence[OutboxEntry]:
        """The next at most `limit` commits with revisions greater than `after`, whole, by rising revision.

        None that was committed is left out. Fewer than `limit` means: at the time of reading there was no other.

        Raises:
            OutboxTrimmed: `trim` has gone past `after`, judged in the same snapshot in which the entries are read.
        """
        ...

    async def wait(self, *, after: int, timeout_s: float) -> None:
        """Return when there may be a commit with a revision greater than `after`, or after `timeout_s`."""
        ...

    async def trim(self, *, up_to: int) -> None:
        """Let go of every commit up to and including `up_to`; idempotent, and never moves back.

        An `up_to` past the newest commit counts for those that are there, so that an outbox which was brought back
        from an older copy is noticed by what it says afterwards.
        """
        ...


class LogMoved(Exception):
    """The log does not end where the publisher believed: another one published, or the log was deleted."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of the log as one publisher knows it; what it publishes holds only there.

    Attributes:
        incarnation: of the log: another one after it was deleted and made anew.
        sequence: the log's own number of its last event, 0 where it has none.
        place: of its last event, None where it has none.
    """

    incarnation: str
    sequence: int
    place: Place | None


class Log(Protocol):
    """An ordered, durable queue of events that may be lost as a whole, and is then filled again.

    Any call may raise `StoreDown`, after which nothing is known of its outcome, or `StoreFull`.
    """

    async def tail(self) -> Tail:
        """Where the log ends now; an empty log is made where there is none."""
        ...

    async def publish(self, tail: Tail, previous: Place, events: Sequence[Recorded]) -> Tail:
        """Append `events` after `tail`, all or a beginning of them; returns the new end once all are durable.

        Args:
            tail: where the log must end now.
            previous: the place of the event before the first one: the log's last, or where an empty log begins.
            events: of whole commits, in the order of their positions; the first commit without what is there already.

        Raises:
            LogMoved: the log does not end at `tail` (any more); some events may have been appended before.
        """
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """Selected events after a place, and the place up to which the log was looked through for them."""

    events: tuple[Recorded, ...]
    through: Place


class Pages(Protocol):
    """Reading the log by places.

    Any call may raise `StoreDown`, or `LogMoved` where the log was deleted while it was read.
    """

    async def reach(self) -> tuple[Place, Place] | None:
        """After which place the log begins and up to which it goes; None where it has no event.

        The end of a commit that is there to its last event is `distroml.eventstore.relay.core.end_of` it, so that
        one that was cut short is told from a whole one; also in `Page.through`.
        """
        ...

    async def read(self, after: Place, patterns: Sequence[str], limit: int) -> Page | None:
        """At most `limit` selected events after a place; None where the log does not reach back to it."""
        ...

    async def read_stream(self, stream: str, after: int, limit: int) -> Sequence[Recorded]:
        """Events of one stream with versions greater than `after`, without a gap; the log may begin later."""
        ...
