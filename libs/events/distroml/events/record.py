"""Events on their way into the log and out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from distroml.events.position import Position

E = TypeVar("E")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Who caused a commit and what it belongs to; carried by every event of it.

    Attributes:
        deployment: id of the installation; equals the log's id.
        project: owner of the resource the events are about.
        actor: who asked, as the server's interceptor found it.
        causation_id: id of the command or event that led here.
        correlation_id: one id for everything that a user's request set off.
        traceparent: W3C trace context, or empty.
        generation: the job's generation known to the writer; 0 where none applies.
        time_ms: the writer's wall clock, Unix milliseconds; for people, never for decisions about liveness.
    """

    deployment: str
    project: str
    actor: str
    causation_id: str
    correlation_id: str
    time_ms: int
    traceparent: str = ""
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An encoded event not yet committed.

    Attributes:
        id: unique; repeated when a lost answer makes a writer try again.
        type: the stored name, such as `scheduler.job.Submitted`; an explicit string, never a class path.
        schema: version of the event's shape.
        public: protobuf that other services may read, else private JSON of the owner.
        data: the encoded body, at most 64 KiB.
    """

    id: str
    type: str
    schema: int
    public: bool
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A committed event, still encoded.

    `version` is the length of the stream after this event: the first event has version 1.
    """

    id: str
    type: str
    schema: int
    public: bool
    data: bytes
    stream: str
    version: int
    position: Position
    context: Context


class UnknownEvent(Exception):
    """A stored event whose type or schema this code does not know."""

    def __init__(self, type_: str, schema: int) -> None:
        super().__init__(
            f"the log holds an event {type_!r} (schema {schema}) that this release does not know; "
            "it was written by a newer release: upgrade this service"
        )
        self.type = type_
        self.schema = schema


class Codec(Protocol[E]):
    """Domain events to stored bytes and back.

    `decode` upcasts: it accepts every schema that was ever written and returns today's shape. An unknown
    type raises `UnknownEvent`, so that a fold stops instead of skipping a fact.
    """

    def encode(self, event: E, *, id: str) -> NewEvent:
        """The stored form of `event` under the given id."""
        ...

    def decode(self, type_: str, schema: int, data: bytes) -> E:
        """Today's shape of a stored event; raises `UnknownEvent`, or `ValueError` where bytes are damaged."""
        ...


class Projection(Protocol):
    """A read model folded from the log; disposable, rebuilt from the beginning at any time.

    Delivery is at least once: `apply` must be idempotent by (stream, version).
    """

    def apply(self, recorded: Recorded) -> None:
        """Take one event into account."""
        ...
