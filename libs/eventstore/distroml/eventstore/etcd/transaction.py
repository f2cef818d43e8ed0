"""A commit as one etcd transaction, and what its answer means: pure.

Compared are the command's absence, the guards and the expected versions. Where one does not hold, a second transaction
reads all of them at one moment, and says why.

An absent stream is new, or was retired. So a commit on one also compares a key that every retirement of it would
write: what the archive said of the stream since that key was read holds as long as the key stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from distroml.events import Position, Recorded
from distroml.eventstore.etcd.keys import Keys
from distroml.eventstore.log import recorded
from distroml.eventstore.port import (
    CommandKnown,
    CommandRecord,
    Commit,
    Committed,
    EventStoreError,
    Fenced,
    Guard,
    Part,
    Sealed,
    WrongExpectedVersion,
)
from distroml.eventstore.relay import OutboxEntry
from distroml.eventstore.wire import decode_commits, encode_commits
from distroml.statestore.etcd import ops
from distroml.statestore.etcd.messages import Compare, KeyValue, RequestOp, TxnRequest, TxnResponse

_commands = msgspec.msgpack.Decoder(tuple[bytes, bytes])
_NONE: Mapping[str, Sealed] = {}


@dataclass(frozen=True, slots=True)
class Past:
    """What a commit knows of streams that are absent from etcd, and may have been retired.

    Attributes:
        at: revisions at which the keys that tell of retired streams were last written; 0, or left out: never.
        told: what the archive said of streams after that.
        asking: streams of which it is to be asked before anything is sent.
    """

    at: Mapping[bytes, int] = field(default_factory=dict[bytes, int])
    told: Mapping[str, Sealed | None] = field(default_factory=dict[str, Sealed | None])
    asking: frozenset[str] = frozenset()


NO_PAST = Past()
"""All streams of a commit are live, as far as is known: what most commits begin with."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was read at one moment of all that a commit compares."""

    entry: KeyValue | None
    command: KeyValue | None
    guards: Sequence[KeyValue | None]
    streams: Sequence[KeyValue | None]
    at: Mapping[bytes, int]


@dataclass(frozen=True, slots=True)
class Transaction:
    """A commit on its way into etcd.

    Attributes:
        keys: of the deployment.
        log: id of the log.
        commit: what is committed.
        entry: the id of its entry in the outbox, which no other commit has.
        command_lease: the lease with which the record of its command ends.
        past: what is known of its streams that may have been retired.
    """

    keys: Keys
    log: str
    commit: Commit
    entry: str
    command_lease: int = 0
    past: Past = NO_PAST

    @property
    def coming_back(self) -> Mapping[str, Sealed]:
        """The retired streams that it makes live again."""
        if not self.past.told:
            return _NONE
        told = ((append, self.past.told.get(append.stream)) for append in self.commit.appends)
        return {one.stream: sealed for one, sealed in told if sealed is not None and sealed.version == one.expected}

    @property
    def hopeless(self) -> bool:
        """Whether it is not to be sent, for one of its streams was retired at another version."""
        told = self.past.told
        return bool(told) and any(
            one.stream in told and version_of(told[one.stream]) != one.expected for one in self.commit.appends
        )

    @property
    def tellers(self) -> tuple[bytes, ...]:
        """The keys that tell whether its streams were retired."""
        return tuple(dict.fromkeys(self.keys.retired(append.stream) for append in self.commit.appends))

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent twice: its entry in the outbox, or its command, then tells that it was carried out."""
        return self.commit.command is not None or any(append.events for append in self.commit.appends)

    def request(self) -> TxnRequest:
        """The transaction."""
        return TxnRequest(compare=tuple(self._conditions()), success=tuple(self._writes()))

    def committed(self, revision: int) -> Committed:
        """What it came to, carried out at a revision."""
        return Committed(revision, self.events(revision))

    def reading(self) -> TxnRequest:
        """What tells why it was not carried out, or that it was before."""
        return TxnRequest(success=tuple(self._reads()))

    def told(self, response: TxnResponse) -> Committed | EventStoreError | Past:
        """What `reading` told: it was carried out, or why not; else what the next try is to know."""
        seen = self._seen(response)
        if seen.entry is not None:
            # An earlier try of this very commit was carried out, and its answer lost.
            return self.committed(seen.entry.mod_revision)
        if seen.command is not None:
            id = self.commit.command.id if self.commit.command else ""
            return CommandKnown(decode_command(id, seen.command.value))
        return self._refusal(seen) or self._learned(seen)

    def events(self, revision: int) -> tuple[Recorded, ...]:
        """The events as recorded at a revision, in the order of the appends."""
        rows = (
            (append.stream, version, event)
            for append in self.commit.appends
            for version, event in enumerate(append.events, start=append.expected + 1)
        )
        return tuple(
            recorded(event, stream, version, Position(self.log, revision, index), self.commit.context)
            for index, (stream, version, event) in enumerate(rows)
        )

    def _conditions(self) -> Iterator[Compare]:
        yield ops.at_revision(self.keys.entry(self.entry), 0)
        if self.commit.command is not None:
            yield ops.at_revision(self.keys.command(self.commit.command.id), 0)
        yield from (holding(self.keys, guard) for guard in self.commit.guards)
        coming, tellers = self.coming_back, dict[bytes, None]()
        for append in self.commit.appends:
            key = self.keys.stream(append.stream)
            if append.expected and append.stream not in coming:
                yield ops.has_value(key, _text(append.expected))
                continue
            yield ops.at_revision(key, 0)
            tellers[self.keys.retired(append.stream)] = None
        for key in tellers:
            yield ops.at_revision(key, self.past.at.get(key, 0))

    def _writes(self) -> Iterator[RequestOp]:
        events = self.events(0)
        if events:
            yield ops.put(self.keys.entry(self.entry), encode_entry(events))
            yield ops.put(self.keys.head, _text(len(events) - 1))
        coming = self.coming_back
        for append in self.commit.appends:
            if append.events or append.stream in coming:
                yield ops.put(self.keys.stream(append.stream), _text(append.expected + len(append.events)))
        for part in (*self.commit.parts, *self._given_back(coming)):
            key = self.keys.key(part.key)
            yield ops.delete(key) if part.value is None else ops.put(key, part.value)
        if (command := self.commit.command) is not None:
            yield ops.put(self.keys.command(command.id), encode_command(command), self.command_lease)

    def _given_back(self, coming: Mapping[str, Sealed]) -> Iterator[Part]:
        if coming:
            own = {part.key for part in self.commit.parts}
            parts = (part for sealed in coming.values() for part in sealed.parts.items())
            yield from (Part(key, value) for key, value in parts if key not in own)

    def _reads(self) -> Iterator[RequestOp]:
        yield ops.get(self.keys.entry(self.entry), keys_only=True)
        # A commit without a command reads the absent command of no name, so that the answers keep their places.
        yield ops.get(self.keys.command(self.commit.command.id if self.commit.command else ""))
        for guard in self.commit.guards:
            yield ops.get(self.keys.key(guard.key), keys_only=guard.value is None)
        for append in self.commit.appends:
            yield ops.get(self.keys.stream(append.stream))
        yield from (ops.get(key, keys_only=True) for key in self.tellers)

    def _seen(self, response: TxnResponse) -> _Seen:
        found = [one.range.kvs[0] if one.range and one.range.kvs else None for one in response.responses]
        entry, command, *rest = found
        guards, streams = len(self.commit.guards), len(self.commit.guards) + len(self.commit.appends)
        at = {key: kv.mod_revision if kv else 0 for key, kv in zip(self.tellers, rest[streams:], strict=True)}
        return _Seen(entry, command, rest[:guards], rest[guards:streams], at)

    def _refusal(self, seen: _Seen) -> EventStoreError | None:
        for guard, kv in zip(self.commit.guards, seen.guards, strict=True):
            if not holds(guard, kv):
                return Fenced(guard.key)
        for append, kv in zip(self.commit.appends, seen.streams, strict=True):
            actual = self._version_of_absent(append.stream, seen.at) if kv is None else int(kv.value)
            if actual is not None and actual != append.expected:
                return WrongExpectedVersion(append.stream, append.expected, actual)
        return None

    def _version_of_absent(self, stream: str, at: Mapping[bytes, int]) -> int | None:
        """The version of a stream that is absent from etcd; None where the archive has to be asked."""
        revision = at[self.keys.retired(stream)]
        if not revision:
            return 0
        return version_of(self.past.told[stream]) if self._still_told(stream, revision) else None

    def _still_told(self, stream: str, revision: int) -> bool:
        return stream in self.past.told and self.past.at.get(self.keys.retired(stream), 0) == revision

    def _learned(self, seen: _Seen) -> Past:
        rows = zip(self.commit.appends, seen.streams, strict=True)
        absent = [append.stream for append, kv in rows if kv is None and seen.at[self.keys.retired(append.stream)]]
        told = {
            stream: self.past.told[stream]
            for stream in absent
            if self._still_told(stream, seen.at[self.keys.retired(stream)])
        }
        return Past(seen.at, told, frozenset(absent) - told.keys())


def holding(keys: Keys, guard: Guard) -> Compare:
    """The guard as a comparison."""
    key = keys.key(guard.key)
    return ops.has_value(key, guard.value) if guard.value is not None else ops.at_revision(key, guard.revision or 0)


def holds(guard: Guard, kv: KeyValue | None) -> bool:
    """Whether the guard holds where its key is found so."""
    if guard.revision is not None:
        return guard.revision == (0 if kv is None else kv.mod_revision)
    return kv is not None and kv.value == guard.value


def version_of(sealed: Sealed | None) -> int:
    """The version at which a stream was retired, 0 where it was not."""
    return sealed.version if sealed else 0


def encode_entry(events: tuple[Recorded, ...]) -> bytes:
    """The outbox's bytes of a commit: its revision is 0 in them, for it is known only after the commit."""
    return encode_commits((OutboxEntry(0, events),))


def decode_entry(log: str, kv: KeyValue) -> OutboxEntry:
    """The commit that a key of the outbox holds, at its revision; raises `ValueError` where it holds something else."""
    (entry,) = decode_commits(log, kv.value)
    revision = kv.mod_revision
    return OutboxEntry(
        revision,
        tuple(replace(one, position=replace(one.position, revision=revision)) for one in entry.events),
    )


def encode_command(record: CommandRecord) -> bytes:
    """The stored bytes of an accepted command; its id is in its key."""
    return msgspec.msgpack.encode((record.content_hash, record.answer))


def decode_command(id: str, data: bytes) -> CommandRecord:
    """What `encode_command` wrote; raises `ValueError` where it is something else."""
    return CommandRecord(id, *_commands.decode(data))


def _text(number: int) -> bytes:
    return b"%d" % number
