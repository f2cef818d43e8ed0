"""The default codecs: private events and state as JSON of frozen dataclasses, by msgspec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from distroml.events import NewEvent, UnknownEvent

E = TypeVar("E")
S = TypeVar("S")

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""The plain JSON object of one schema to that of the next."""


class DataclassCodec(Generic[E]):
    """A `Codec` for frozen dataclasses, by an explicit table of stored names.

    `DataclassCodec({"scheduler.job.Submitted": (Submitted, 2)}, {("scheduler.job.Submitted", 1): add_queue})`
    writes schema 2 and reads 1 and 2; an upcaster turns the object of its schema into that of the next one.

    A field that the class does not have is ignored and one with a default may be absent; every other change of
    a class needs a new schema and an upcaster.
    """

    def __init__(
        self,
        table: Mapping[str, tuple[type[E], int]],
        upcasters: Mapping[tuple[str, int], Upcaster] | None = None,
    ) -> None:
        """Raise `ValueError` where a class has two names, or schemas leave a gap."""
        self._upcasters = dict(upcasters or {})
        self._names = {cls: (name, schema) for name, (cls, schema) in table.items()}
        if len(self._names) != len(table):
            raise ValueError("a class stands under two stored names")
        self._schemas = {name: schema for name, (_, schema) in table.items()}
        self._decoders = {name: msgspec.json.Decoder(cls) for name, (cls, _) in table.items()}
        self._classes = {name: cls for name, (cls, _) in table.items()}
        for name, schema in self._upcasters:
            if not 0 < schema < self._schemas.get(name, 0):
                raise ValueError(f"the upcaster of {name!r} schema {schema} leads nowhere")

    @property
    def classes(self) -> frozenset[type[E]]:
        """The classes that this codec encodes."""
        return frozenset(self._names)

    @property
    def names(self) -> frozenset[str]:
        """The stored names that this codec decodes."""
        return frozenset(self._schemas)

    def encode(self, event: E, *, id: str) -> NewEvent:
        """The stored form of `event`; raises `KeyError` for a class without a name."""
        name, schema = self._names[type(event)]
        return NewEvent(id=id, type=name, schema=schema, public=False, data=msgspec.json.encode(event))

    def decode(self, type_: str, schema: int, data: bytes) -> E:
        """Today's shape of a stored event; raises `UnknownEvent`, or `ValueError` where bytes are damaged."""
        current = self._schemas.get(type_, 0)
        if schema == current:
            return self._decoders[type_].decode(data)
        if not 0 < schema < current:
            raise UnknownEvent(type_, schema)
        body = msgspec.json.decode(data, type=dict[str, Any])
        for step in range(schema, current):
            upcast = self._upcasters.get((type_, step))
            if upcast is None:
                raise UnknownEvent(type_, schema)
            body = upcast(body)
        return msgspec.convert(body, self._classes[type_])


class TableCodec(Protocol[E]):
    """A codec that knows its classes and names, and so can be joined with others."""

    @property
    def classes(self) -> frozenset[type[E]]:
        """The classes that this codec encodes."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """The stored names that this codec decodes."""
        ...

    def encode(self, event: E, *, id: str) -> NewEvent:
        """As `Codec`."""
        ...

    def decode(self, type_: str, schema: int, data: bytes) -> E:
        """As `Codec`."""
        ...


class JoinedCodec(Generic[E]):
    """Several codecs as one, such as a service's private dataclasses and its public protobuf events."""

    def __init__(self, codecs: Iterable[TableCodec[Any]]) -> None:
        """Raise `ValueError` where two of them claim a class or a name."""
        self._by_class: dict[type[E], TableCodec[E]] = {}
        self._by_name: dict[str, TableCodec[E]] = {}
        for codec in codecs:
            if codec.classes & self._by_class.keys() or codec.names & self._by_name.keys():
                raise ValueError("two codecs claim the same class or stored name")
            self._by_class |= dict.fromkeys(codec.classes, codec)
            self._by_name |= dict.fromkeys(codec.names, codec)

    def encode(self, event: E, *, id: str) -> NewEvent:
        """The stored form of `event`; raises `KeyError` for a class that no codec knows."""
        return self._by_class[type(event)].encode(event, id=id)

    def decode(self, type_: str, schema: int, data: bytes) -> E:
        """Today's shape of a stored event."""
        codec = self._by_name.get(type_)
        if codec is None:
            raise UnknownEvent(type_, schema)
        return codec.decode(type_, schema, data)


class StateCodec(Protocol[S]):
    """A state as named parts, of which a commit writes only those whose bytes changed."""

    def parts(self, state: S) -> Mapping[str, bytes]:
        """The parts of `state`, by names of printable text other than `@`; equal states give equal bytes."""
        ...

    def from_parts(self, parts: Mapping[str, bytes]) -> S:
        """The state of these parts; `ValueError` where they do not make one, and it is folded from events again."""
        ...


class JsonState(Generic[S]):
    """A `StateCodec` with the whole state in one JSON part: for states of a few kilobytes.

    `S` is a frozen dataclass of what msgspec knows; sets are written in order.
    """

    def __init__(self, cls: type[S]) -> None:
        self._decoder = msgspec.json.Decoder(cls)
        self._encoder = msgspec.json.Encoder(order="deterministic")

    def parts(self, state: S) -> Mapping[str, bytes]:
        """One part."""
        return {"state": self._encoder.encode(state)}

    def from_parts(self, parts: Mapping[str, bytes]) -> S:
        """The state; raises `ValueError`."""
        try:
            return self._decoder.decode(parts["state"])
        except KeyError as error:
            raise ValueError("the part 'state' is missing") from error
