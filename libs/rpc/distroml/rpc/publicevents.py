"""Public events: a domain's dataclasses as the protobuf messages that other services read.

The stored name of an event leads to its message in the contract: `scheduler.job.Submitted` is `JobSubmitted`, or
`Submitted` where there is no such message, of package `distroml.api.scheduler.v1`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, Final, Generic, TypeVar, cast

from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import DecodeError, EncodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from distroml.api.common.v1 import common_pb2
from distroml.events import NewEvent, Recorded, UnknownEvent
from distroml.rpc.conversion import ContractMismatch, Converter, compile_converter

E = TypeVar("E")

PACKAGES: Final[Mapping[str, str]] = {
    "scheduler": "distroml.api.scheduler.v1.events_pb2",
    "rendezvous": "distroml.api.rendezvous.v1.rendezvous_pb2",
    "checkpoint": "distroml.api.checkpoint.v1.checkpoint_pb2",
}
"""First part of a stored name to the module with its messages."""

Upcaster = Callable[[Any], Any]


class PublicCodec(Generic[E]):
    """A `distroml.events.Codec` that stores events as messages of the contract.

    `PublicCodec({"scheduler.job.Submitted": (Submitted, JobSubmitted, 1)})`: today's schema is 1. New fields with
    proto3's defaults need no new schema. Where the meaning changed, an upcaster under (name, old schema) turns the
    dataclass that the old bytes read as into today's.

    Raises:
        ContractMismatch: a dataclass and its message differ, or a name leads to another message in the contract.
        ValueError: a class has two names, or an old schema has no upcaster.
    """

    def __init__(
        self,
        table: Mapping[str, tuple[type[E], type[Message], int]],
        upcasters: Mapping[tuple[str, int], Upcaster] | None = None,
    ) -> None:
        self._upcasters = dict(upcasters or {})
        self._schemas = {name: schema for name, (_, _, schema) in table.items()}
        self._messages: dict[str, type[Message]] = {}
        self._converters: dict[str, Converter] = {}
        self._encoders: dict[type[E], tuple[str, int, Callable[[Any], Any]]] = {}
        problems: list[str] = []
        for name, (cls, message, schema) in table.items():
            if cls in self._encoders:
                raise ValueError(f"{cls.__name__} stands under two stored names")
            if missing := [old for old in range(1, schema) if (name, old) not in self._upcasters]:
                raise ValueError(f"{name!r} is at schema {schema} and has no upcaster of {missing}")
            expected = message_class(name)
            if expected is not message:
                problems.append(f"{name} leads to {_full_name(expected)} in the contract, not {_full_name(message)}")
            try:
                converter = compile_converter(cls, message)
            except ContractMismatch as error:
                problems += error.problems
                continue
            self._messages[name], self._converters[name] = message, converter
            self._encoders[cls] = (name, schema, converter.to_message)
        if stray := [key for key in self._upcasters if not 0 < key[1] < self._schemas.get(key[0], 0)]:
            raise ValueError(f"these upcasters lead nowhere: {stray}")
        if problems:
            raise ContractMismatch(problems)

    @property
    def classes(self) -> frozenset[type[E]]:
        """The classes that this codec encodes."""
        return frozenset(self._encoders)

    @property
    def names(self) -> frozenset[str]:
        """The stored names that this codec decodes."""
        return frozenset(self._schemas)

    def encode(self, event: E, *, id: str) -> NewEvent:
        """The stored form of `event`.

        Raises:
            KeyError: no such class in this codec.
            ValueError: a value that the contract has no room for, such as a number past its range.
        """
        name, schema, to_message = self._encoders[type(event)]
        try:
            data = to_message(event).SerializeToString(deterministic=True)
        except (TypeError, ValueError, EncodeError, KeyError) as error:
            raise ValueError(f"{name} cannot be written: {error}") from error
        return NewEvent(id=id, type=name, schema=schema, public=True, data=data)

    def decode(self, type_: str, schema: int, data: bytes) -> E:
        """Today's shape of a stored event; raises `UnknownEvent`, or `ValueError` where bytes are damaged."""
        current = self._schemas.get(type_, 0)
        if not 0 < schema <= current:
            raise UnknownEvent(type_, schema)
        event = self._converters[type_].to_dataclass(_parse(self._messages[type_], type_, data))
        for step in range(schema, current):
            event = self._upcasters[type_, step](event)
        return cast(E, event)


def check_codec(codec: PublicCodec[E], samples: Mapping[type[E], E]) -> None:
    """For a service's tests: every event of the codec survives the way into the log and back.

    Raises:
        AssertionError: an event class has no sample, or a sample comes back different.
    """
    missing = sorted(cls.__name__ for cls in codec.classes - samples.keys())
    assert not missing, f"no sample of {', '.join(missing)}"
    for sample in samples.values():
        stored = codec.encode(sample, id="evt-1")
        back = codec.decode(stored.type, stored.schema, stored.data)
        assert back == sample, f"{stored.type}: wrote {sample}, read {back}"
        assert type(back) is type(sample)


@cache
def message_class(type_: str) -> type[Message]:
    """The message of the contract that a stored name leads to; raises `UnknownEvent`."""
    service, *middle = type_.split(".")
    if middle and (module := PACKAGES.get(service)) is not None:
        package = cast(str, import_module(module).DESCRIPTOR.package)
        kinds, name = "".join(kind.capitalize() for kind in middle[:-1]), middle[-1]
        for full_name in (f"{package}.{kinds}{name}", f"{package}.{name}"):
            try:
                descriptor = descriptor_pool.Default().FindMessageTypeByName(full_name)
            except KeyError:
                continue
            return message_factory.GetMessageClass(descriptor)
    raise UnknownEvent(type_, 0)


def decode_public(type_: str, schema: int, data: bytes) -> Message:
    """A public event of any service, for its readers.

    Raises:
        UnknownEvent: no such event in this release's contract; a reader counts it and goes on.
        ValueError: the bytes are damaged.
    """
    try:
        cls = message_class(type_)
    except UnknownEvent:
        raise UnknownEvent(type_, schema) from None
    return _parse(cls, type_, data)


def to_json(recorded: Recorded) -> str:
    """The body of a public event as JSON with the contract's field names; empty for a private one.

    Raises:
        UnknownEvent, ValueError: as `decode_public`.
    """
    if not recorded.public:
        return ""
    message = decode_public(recorded.type, recorded.schema, recorded.data)
    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=None
    )


def to_event(recorded: Recorded) -> common_pb2.Event:
    """A recorded event as the contract's `Event`, for ListEvents.

    `json` is empty where this release does not know the event, `data` where it is private.
    """
    context = recorded.context
    try:
        text = to_json(recorded)
    except UnknownEvent:
        text = ""
    time = Timestamp()
    time.FromMilliseconds(context.time_ms)
    return common_pb2.Event(
        id=recorded.id,
        type=recorded.type,
        schema_version=recorded.schema,
        stream=recorded.stream,
        version=recorded.version,
        position=str(recorded.position),
        time=time,
        deployment=context.deployment,
        project=context.project,
        actor=context.actor,
        causation_id=context.causation_id,
        correlation_id=context.correlation_id,
        traceparent=context.traceparent,
        generation=context.generation,
        public=recorded.public,
        data=recorded.data if recorded.public else b"",
        json=text,
    )


def _parse(cls: type[Message], type_: str, data: bytes) -> Message:
    try:
        return cls.FromString(data)
    except DecodeError as error:
        raise ValueError(f"the stored bytes of a {type_} are damaged: {error}") from error


def _full_name(message: type[Message]) -> str:
    return message.DESCRIPTOR.full_name
