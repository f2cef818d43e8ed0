"""What a service and the process that makes history anew say to one another: a message, then its answer.

A message is its length in four bytes, the lowest first, and that many bytes of msgpack.
"""

from __future__ import annotations

import msgspec

from distroml.telemetry.history.folding import EventTuple

LENGTH_BYTES = 4


class ToSqlite(msgspec.Struct, frozen=True, tag=True):
    """Make it in a new file."""

    path: str


class ToPostgres(msgspec.Struct, frozen=True, tag=True):
    """Make it in a schema that has the tables already, empty."""

    address: str
    schema: str


Where = ToSqlite | ToPostgres


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The first message: where, and how many events of a job stay."""

    where: Where
    max_events: int


class Fold(msgspec.Struct, frozen=True, tag=True):
    """The next events of the log, and the position up to which it was read for them."""

    rows: list[EventTuple]
    cursor: str


class Finish(msgspec.Struct, frozen=True, tag=True):
    """There are no more: make it whole and durable."""


class Done(msgspec.Struct, frozen=True, tag=True):
    """A message was carried out; `skipped` of its events have no meaning that this release can read."""

    skipped: int = 0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It cannot go on; `away` says that the server behind it is why."""

    why: str
    away: bool = False


Message = Begin | Fold | Finish
Answer = Done | Failed

_encoder = msgspec.msgpack.Encoder()
message_of = msgspec.msgpack.Decoder(Message).decode
answer_of = msgspec.msgpack.Decoder(Answer).decode


def packed(said: Message | Answer) -> bytes:
    """A message or an answer, after its length."""
    data = _encoder.encode(said)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def length_of(prefix: bytes) -> int:
    """How many bytes follow."""
    return int.from_bytes(prefix, "little")
