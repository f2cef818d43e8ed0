"""Golden events: the bytes of other services' public events that a reader relies on, and what they mean to it.

Each reader keeps them under `golden/`, one file per writer. A reader must go on understanding them, and a writer must
go on writing them: both are tested (`tests.contract.test_golden`). They are never edited, only added:

    python -m tests.contract.golden      add what a reader understands, in full, where no golden event is so yet
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from distroml.checkpoint.adapters.codecs import PUBLIC as CHECKPOINT_EVENTS
from distroml.events import Context, NewEvent, Position, Recorded
from distroml.eventstore.codec import JoinedCodec
from distroml.rendezvous.adapters.codec import PUBLIC_EVENTS as RENDEZVOUS_EVENTS
from distroml.rpc.conversion import is_repeated
from distroml.rpc.publicevents import decode_public, message_class
from distroml.scheduler.adapters.codecs import JOB_EVENTS, NODE_EVENTS
from distroml.scheduler.reactor import command_of
from distroml.scheduler.words import in_words
from distroml.telemetry.adapters.facts import fact_of

HERE = Path(__file__).parent
AT_MS = 1_700_000_000_000


class Codec(Protocol):
    """How a writer writes its events."""

    def encode(self, event: Any, *, id: str) -> NewEvent: ...

    def decode(self, type_: str, schema: int, data: bytes) -> Any: ...


WRITERS: Mapping[str, Codec] = {
    "scheduler": JoinedCodec([JOB_EVENTS, NODE_EVENTS]),
    "rendezvous": RENDEZVOUS_EVENTS,
    "checkpoint": CHECKPOINT_EVENTS,
}
"""By service: what writes its public events."""
WRITTEN: Mapping[str, frozenset[str]] = {
    "scheduler": JOB_EVENTS.names | NODE_EVENTS.names,
    "rendezvous": RENDEZVOUS_EVENTS.names,
    "checkpoint": CHECKPOINT_EVENTS.names,
}
"""By service: the stored names of its public events."""


@dataclass(frozen=True)
class Golden:
    """One event as its writer stores it: its name, schema and bytes, the same to be read, and its meaning."""

    type: str
    schema: int
    data: bytes
    event: Any
    means: Any

    def as_json(self) -> dict[str, Any]:
        """As it stands in its file."""
        return {**vars(self), "data": base64.b64encode(self.data).decode()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Golden:
        """As `as_json` made it."""
        return cls(**{**document, "data": base64.b64decode(document["data"])})


def understood_by_scheduler(type_: str, schema: int, data: bytes) -> Any:
    """The command that follows from an event, and whether a job's history tells of it; None where it means nothing."""
    context = Context(
        deployment="d", project="p", actor="a", causation_id="c", correlation_id="r", time_ms=AT_MS, traceparent=""
    )
    recorded = Recorded(
        id="evt-1",
        type=type_,
        schema=schema,
        public=True,
        data=data,
        stream="rendezvous/job/job-1",
        version=1,
        position=Position("log", 1),
        context=context,
    )
    command, words = command_of(recorded), in_words(recorded)
    if command is None and words is None:
        return None
    # When it is obeyed is the scheduler's own clock.
    told = {} if command is None else {**msgspec.to_builtins(command), "at_ms": AT_MS}
    # In which words it is told may change.
    return {"command": type(command).__name__ if command else None, **told, "in_history": bool(words)}


def understood_by_telemetry(type_: str, schema: int, data: bytes) -> Any:
    """The fact that an event is to telemetry; None where it is shown as text only."""
    fact = fact_of(decode_public(type_, schema, data))
    return None if fact is None else {"fact": type(fact).__name__, **msgspec.to_builtins(fact)}


@dataclass(frozen=True)
class Reader:
    """Whose events a service reads, and what an event means to it."""

    writers: tuple[str, ...]
    means: Callable[[str, int, bytes], Any]


READERS: Mapping[str, Reader] = {
    "scheduler": Reader(("rendezvous", "checkpoint"), understood_by_scheduler),
    "telemetry": Reader(("scheduler", "rendezvous", "checkpoint"), understood_by_telemetry),
}


def path_of(reader: str, writer: str) -> Path:
    """Where a reader keeps what it relies on of a writer."""
    return HERE / reader / "golden" / f"{writer}.json"


def read(reader: str, writer: str) -> list[Golden]:
    """What a reader relies on of a writer."""
    return [Golden.from_json(one) for one in json.loads(path_of(reader, writer).read_text())]


def sample(type_: str) -> Message:
    """An event of that stored name in which every field says something."""
    message = message_class(type_)()
    _fill(message, type_)
    return message


# Fields that must say more than that they are there.
_TEXTS = {
    "rendezvous.generation.Closed.outcome": "Failed",
    "rendezvous.plan.PlanChosen.plan": '{"dp_replicate": 2, "microbatch": 4}',
    "rendezvous.plan.PlanChosen.prediction": (
        '{"step_seconds": 0.25, "peak_bytes_per_rank": 500000000.0, "parts": {}, "mfu": 0.3, "binding": "the link"}'
    ),
    "rendezvous.plan.PlanChosen.best": "[]",
    "rendezvous.plan.LinksProbed.sums": '{"choice": "ring above 64 KiB, tree below"}',
}


def _fill(message: Message, path: str) -> None:
    for field in message.DESCRIPTOR.fields:
        name = f"{path}.{field.name}"
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map:
            value = field.message_type.fields_by_name["value"]
            getattr(message, field.name)["key"] = _value(value, name)
        elif is_repeated(field) and field.message_type is not None:
            _fill(getattr(message, field.name).add(), name)
        elif is_repeated(field):
            getattr(message, field.name).append(_value(field, name))
        elif field.message_type is not None:
            child = getattr(message, field.name)
            child.SetInParent()
            _fill(child, name)
        else:
            setattr(message, field.name, _value(field, name))


def _value(field: FieldDescriptor, name: str) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return _TEXTS.get(name, field.name)
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return field.number + 0.5
        case FieldDescriptor.CPPTYPE_ENUM:
            return field.enum_type.values[-1].number
        case _:
            return AT_MS if field.name == "at_ms" else field.number


def make(reader: str, writer: str, type_: str) -> Golden | None:
    """A golden event as the writer writes it today; None where it means nothing to the reader."""
    codec, given = WRITERS[writer], sample(type_)
    stored = codec.encode(codec.decode(type_, 1, given.SerializeToString(deterministic=True)), id="evt-1")
    means = READERS[reader].means(type_, stored.schema, stored.data)
    if means is None:
        return None
    event = json_format.MessageToDict(
        decode_public(type_, stored.schema, stored.data), preserving_proto_field_name=True
    )
    return Golden(type_, stored.schema, stored.data, event, means)


def main() -> None:
    """Add a golden event with every field that there is, where none is recorded."""
    for reader, of in READERS.items():
        for writer in of.writers:
            path = path_of(reader, writer)
            have = read(reader, writer) if path.exists() else []
            known = {(one.type, one.schema, one.data) for one in have}
            made = [one for type_ in sorted(WRITTEN[writer]) if (one := make(reader, writer, type_)) is not None]
            new = [one for one in made if (one.type, one.schema, one.data) not in known]
            path.parent.mkdir(exist_ok=True)
            documents = [one.as_json() for one in (*have, *new)]
            path.write_text(json.dumps(documents, indent=1, ensure_ascii=False) + "\n")
            print(f"{path.relative_to(HERE)}: {len(have)} kept, {len(new)} added")


if __name__ == "__main__":
    main()
