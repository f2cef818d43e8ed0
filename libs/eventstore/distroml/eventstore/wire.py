"""Commits and events as bytes outside of the database: the same in segments and in the log's messages.

Fields are arrays in a fixed order, in msgpack. A new field goes to the end and has a default, so that what was
written stays readable; anything else is a new format version of what contains it.
"""

from __future__ import annotations

import msgspec

from distroml.events import Context, Position, Recorded
from distroml.eventstore.relay.port import OutboxEntry


class _Event(msgspec.Struct, array_like=True, frozen=True):
    stream: str
    version: int
    id: str
    type: str
    schema: int
    public: bool
    data: bytes


class _Commit(msgspec.Struct, array_like=True, frozen=True):
    revision: int
    context: Context
    events: tuple[_Event, ...]


class _Single(msgspec.Struct, array_like=True, frozen=True):
    revision: int
    index: int
    context: Context
    event: _Event


_encoder = msgspec.msgpack.Encoder()
_commits = msgspec.msgpack.Decoder(tuple[_Commit, ...])
_single = msgspec.msgpack.Decoder(_Single)


def encode_event(recorded: Recorded) -> bytes:
    """One event with its position, without the log's id."""
    position = recorded.position
    return _encoder.encode(_Single(position.revision, position.index, recorded.context, _event(recorded)))


def decode_event(log: str, data: bytes) -> Recorded:
    """What `encode_event` wrote; raises `ValueError` where it is something else."""
    single = _single.decode(data)
    return _recorded(single.event, Position(log, single.revision, single.index), single.context)


def encode_commits(entries: tuple[OutboxEntry, ...]) -> bytes:
    """Whole commits; raises `ValueError` where events of one commit do not belong together."""
    return _encoder.encode(tuple(_commit(entry) for entry in entries))


def decode_commits(log: str, data: bytes) -> tuple[OutboxEntry, ...]:
    """What `encode_commits` wrote; raises `ValueError` where it is something else."""
    return tuple(
        OutboxEntry(
            commit.revision,
            tuple(
                _recorded(event, Position(log, commit.revision, index), commit.context)
                for index, event in enumerate(commit.events)
            ),
        )
        for commit in _commits.decode(data)
    )


def _commit(entry: OutboxEntry) -> _Commit:
    context = entry.events[0].context
    for index, recorded in enumerate(entry.events):
        at = recorded.position
        if (at.revision, at.index) != (entry.revision, index) or recorded.context != context:
            raise ValueError(f"commit {entry.revision} holds {at} as its event {index}, or events of two contexts")
    return _Commit(entry.revision, context, tuple(_event(recorded) for recorded in entry.events))


def _event(recorded: Recorded) -> _Event:
    return _Event(
        recorded.stream,
        recorded.version,
        recorded.id,
        recorded.type,
        recorded.schema,
        recorded.public,
        recorded.data,
    )


def _recorded(event: _Event, position: Position, context: Context) -> Recorded:
    return Recorded(
        id=event.id,
        type=event.type,
        schema=event.schema,
        public=event.public,
        data=event.data,
        stream=event.stream,
        version=event.version,
        position=position,
        context=context,
    )
