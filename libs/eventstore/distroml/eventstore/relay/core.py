"""What a relay does next: pure decisions over what it has read from the outbox and from the log's end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distroml.events import Recorded
from distroml.eventstore.log import Place
from distroml.eventstore.relay.port import OutboxEntry, Tail

BEGINNING: Place = (0, -1)
_PAST_ANY_EVENT = 1 << 20
_OVERHEAD_BYTES = 256
"""Of an event besides its body and names, roughly."""


def end_of(revision: int) -> Place:
    """The place after the last event of a commit, whatever its index is."""
    return (revision, _PAST_ANY_EVENT) if revision else BEGINNING


@dataclass(frozen=True, slots=True)
class Feed:
    """How far one relay has filled the log.

    Attributes:
        tail: where the log ends.
        previous: the place of its last event, or where an empty log begins.
        whole: every commit up to this revision is in the log to its last event, or sealed and older than the log.
    """

    tail: Tail
    previous: Place
    whole: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Events to publish next, and the revision up to which every commit is whole once they are durable."""

    events: tuple[Recorded, ...]
    whole: int


def resume(tail: Tail, begins_after: int) -> Feed:
    """Go on where the log ends; an empty one begins after the revision `begins_after`, up to which all is sealed.

    The last commit in the log may have been cut short by a crash: it is looked at again.
    """
    if tail.place is None:
        return Feed(tail, end_of(begins_after), begins_after)
    return Feed(tail, tail.place, tail.place[0] - 1)


def batch(feed: Feed, entries: Sequence[OutboxEntry], limit: int) -> Batch:
    """What of the next commits the log lacks: whole commits, at most `limit` events or else one commit."""
    events: list[Recorded] = []
    whole = feed.whole
    for entry in entries:
        missing = [one for one in entry.events if (entry.revision, one.position.index) > feed.previous]
        if events and len(events) + len(missing) > limit:
            break
        events += missing
        whole = entry.revision
    return Batch(tuple(events), whole)


def fed(feed: Feed, done: Batch, tail: Tail) -> Feed:
    """After `done` became durable and the log ends at `tail`."""
    return Feed(tail, feed.previous if tail.place is None else tail.place, done.whole)


@dataclass(frozen=True, slots=True)
class SealPolicy:
    """When collected commits become a segment: large enough, or waited for long enough.

    An outbox entry stays until it is sealed, and every segment is an object: smaller values keep the outbox smaller,
    larger ones the number of objects.
    """

    bytes: int = 4 * 1024 * 1024
    age_s: float = 15.0


@dataclass(frozen=True, slots=True)
class Collected:
    """Commits on their way into the next segment.

    Attributes:
        after: the revision up to which the log is sealed.
        entries: every commit after it, so far.
        bytes: their size, roughly.
        since_s: the monotonic time when the first of them was collected.
    """

    after: int
    entries: tuple[OutboxEntry, ...] = ()
    bytes: int = 0
    since_s: float = 0.0

    @property
    def last(self) -> int:
        """The revision up to which commits are collected or sealed."""
        return self.entries[-1].revision if self.entries else self.after


def collect(collected: Collected, entries: Sequence[OutboxEntry], now_s: float, policy: SealPolicy) -> Collected:
    """Take of the next commits what the segment has room for: at least one where it is empty."""
    taken: list[OutboxEntry] = []
    size = collected.bytes
    for entry in entries:
        more = size_of(entry)
        if (taken or collected.entries) and size + more > policy.bytes:
            break
        taken.append(entry)
        size += more
    if not taken:
        return collected
    since_s = collected.since_s if collected.entries else now_s
    return Collected(collected.after, (*collected.entries, *taken), size, since_s)


def due_in_s(collected: Collected, more: bool, now_s: float, policy: SealPolicy) -> float | None:
    """In how many seconds to seal: 0 where the segment is full, None where there is nothing.

    Args:
        collected: what there is.
        more: whether a next commit is known that had no room.
        now_s: the monotonic clock.
        policy: when to seal.
    """
    if not collected.entries:
        return None
    if more or collected.bytes >= policy.bytes:
        return 0.0
    return max(0.0, collected.since_s + policy.age_s - now_s)


def trimmable(whole: int, sealed: int) -> int:
    """Up to which revision commits may leave the outbox: the log and the segments both hold them."""
    return min(whole, sealed)


def size_of(entry: OutboxEntry) -> int:
    """How large a commit is in a segment before compression, roughly."""
    return sum(len(one.data) + len(one.stream) + len(one.type) + _OVERHEAD_BYTES for one in entry.events)
