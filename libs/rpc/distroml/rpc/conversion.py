"""Frozen dataclasses to protobuf messages of the same field names, and back: compiled once per pair of classes.

Compiling is strict: every field of one side is a field of the other, of a type that loses nothing. So an event
that a domain changes without its contract, or the other way round, fails at start-up and in every test that makes
the codec, never while an event is written.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Union, cast, get_args, get_origin

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

Convert = Callable[[Any], Any]


class ContractMismatch(TypeError):
    """A dataclass and its message do not describe the same thing; names every difference."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Converter:
    """Both directions for one pair of classes."""

    to_message: Convert
    """A dataclass instance to its message; raises `ValueError` for a value that the contract has no room for."""
    to_dataclass: Convert
    """A message to its dataclass; raises `ValueError` for an enum value that this release does not know."""


def compile_converter(cls: type, message: type[Message]) -> Converter:
    """The converter between `cls` and `message`, nested ones included.

    Raises:
        ContractMismatch: names every field on which the two sides differ.
    """
    problems: list[str] = []
    converter = _Compiler(problems).pair(cls, cast("Descriptor", message.DESCRIPTOR), cls.__name__)
    if problems:
        raise ContractMismatch(problems)
    return converter


@dataclass(frozen=True, slots=True)
class _Field:
    """How one field is converted; None means that both sides hold the same value."""

    name: str
    encode: Convert | None
    decode: Convert | None
    presence: bool
    """Absent is None on the dataclass' side."""


_SAME: Final = (None, None)
_INTEGERS: Final = frozenset(
    {
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_SINT32,
        FieldDescriptor.TYPE_SINT64,
        FieldDescriptor.TYPE_FIXED32,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED32,
        FieldDescriptor.TYPE_SFIXED64,
    }
)
_SCALARS: Final[Mapping[type, frozenset[int]]] = {
    str: frozenset({FieldDescriptor.TYPE_STRING}),
    bytes: frozenset({FieldDescriptor.TYPE_BYTES}),
    bool: frozenset({FieldDescriptor.TYPE_BOOL}),
    int: _INTEGERS,
    # `float` of protobuf has 32 bits: a Python float would not come back the same.
    float: frozenset({FieldDescriptor.TYPE_DOUBLE}),
}


class _Compiler:
    def __init__(self, problems: list[str]) -> None:
        self._problems = problems
        self._pairs: dict[tuple[type, str], Converter] = {}

    def pair(self, cls: type, descriptor: Descriptor, path: str) -> Converter:
        key = (cls, descriptor.full_name)
        if (known := self._pairs.get(key)) is not None:
            return known
        # Types may contain themselves: inner uses find this entry and look the real one up when called.
        self._pairs[key] = Converter(
            lambda value: self._pairs[key].to_message(value), lambda value: self._pairs[key].to_dataclass(value)
        )
        self._pairs[key] = self._compile(cls, descriptor, path)
        return self._pairs[key]

    def _compile(self, cls: type, descriptor: Descriptor, path: str) -> Converter:
        hints = typing.get_type_hints(cls)
        mine = [field.name for field in dataclasses.fields(cls)]
        theirs = {field.name: field for field in descriptor.fields}
        if missing := sorted(set(mine) - theirs.keys()):
            self._problems.append(f"{path}: {', '.join(missing)} not in message {descriptor.full_name}")
        if extra := sorted(theirs.keys() - set(mine)):
            self._problems.append(f"{path}: lacks {', '.join(extra)} of message {descriptor.full_name}")
        fields = [self._field(name, hints[name], theirs[name], f"{path}.{name}") for name in mine if name in theirs]
        return Converter(_encoder(_message_class(descriptor), fields), _decoder(cls, fields))

    def _field(self, name: str, hint: object, field: FieldDescriptor, path: str) -> _Field:
        hint, optional = _without_none(hint)
        hint = _origin_of_new_type(hint)
        if field.containing_oneof is not None and not _is_proto3_optional(field):
            self._problems.append(f"{path}: is in oneof {field.containing_oneof.name}, which has no form here")
        repeated = is_repeated(field)
        is_enum = field.type == FieldDescriptor.TYPE_ENUM
        # An unset enum is its value 0, which Python leaves out: None may stand for it.
        none_enum = optional and is_enum and not repeated and not field.has_presence
        if optional != field.has_presence and not none_enum and not (_is_message(field) and not repeated):
            wanted = "may be None here and always has a value" if optional else "is never None here and may be absent"
            self._problems.append(f"{path}: {wanted} in the message")
        encode, decode = self._repeated(hint, field, path) if repeated else self._single(hint, field, path)
        if none_enum and encode is not None and decode is not None:
            return _Field(name, encode, _none_for_zero(decode), presence=False)
        return _Field(name, encode, decode, presence=optional)

    def _repeated(self, hint: object, field: FieldDescriptor, path: str) -> tuple[Convert | None, Convert | None]:
        origin, args = get_origin(hint), get_args(hint)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            if origin not in (Mapping, dict):
                self._problems.append(f"{path}: is a map in the message; use Mapping[K, V]")
                return _SAME
            self._single(_origin_of_new_type(args[0]), entry.fields_by_name["key"], f"{path} key")
            inner = self._single(_origin_of_new_type(args[1]), entry.fields_by_name["value"], f"{path} value")
            return _map_converters(*inner)
        if origin is not tuple or len(args) != 2 or args[1] is not Ellipsis:
            self._problems.append(f"{path}: is repeated in the message; use tuple[T, ...]")
            return _SAME
        encode, decode = self._single(_origin_of_new_type(args[0]), field, path)
        return _tuple_converters(encode, decode)

    def _single(self, hint: object, field: FieldDescriptor, path: str) -> tuple[Convert | None, Convert | None]:
        """Converters of one value."""
        if (message := field.message_type) is not None:
            if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
                self._problems.append(f"{path}: {_text(cast(object, hint))} is no dataclass for {message.full_name}")
                return _SAME
            pair = self.pair(hint, message, path)
            return pair.to_message, pair.to_dataclass
        if (values := field.enum_type) is not None:
            if not (isinstance(hint, type) and issubclass(hint, enum.Enum)):
                self._problems.append(f"{path}: {_text(cast(object, hint))} is no enum for {values.full_name}")
                return _SAME
            return self._enum(hint, values, path)
        if not isinstance(hint, type) or field.type not in _SCALARS.get(hint, ()):
            self._problems.append(f"{path}: {_text(hint)} does not hold what {field.full_name} does, or loses some")
        return _SAME

    def _enum(self, cls: type[enum.Enum], descriptor: EnumDescriptor, path: str) -> tuple[Convert, Convert]:
        prefix = enum_prefix(descriptor)
        numbers = {value.name.removeprefix(prefix): value.number for value in descriptor.values}
        members = dict(cls.__members__)
        if "UNSPECIFIED" not in members:
            numbers.pop("UNSPECIFIED", None)
        if different := sorted(numbers.keys() ^ members.keys()):
            self._problems.append(f"{path}: {cls.__name__} and {descriptor.full_name} differ in {', '.join(different)}")
            return _fail, _fail
        by_member = {members[name]: number for name, number in numbers.items()}
        by_number = {number: members[name] for name, number in numbers.items()}

        def decode(number: int) -> enum.Enum:
            try:
                return by_number[number]
            except KeyError:
                raise ValueError(f"{descriptor.full_name} has no value {number} in this release") from None

        return by_member.__getitem__, decode


def is_repeated(field: FieldDescriptor) -> bool:
    """Whether a field is a list or a map, in old and new releases of protobuf."""
    found: object = getattr(field, "is_repeated", None)
    return bool(found) if found is not None else getattr(field, "label", 0) == FieldDescriptor.LABEL_REPEATED


def enum_prefix(descriptor: EnumDescriptor) -> str:
    """What the values' names begin with: `JOB_STATE_` for `JobState`."""
    name = "".join(f"_{char}" if char.isupper() else char.upper() for char in descriptor.name)
    return name.removeprefix("_") + "_"


def _is_message(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_MESSAGE


def _is_proto3_optional(field: FieldDescriptor) -> bool:
    oneof = field.containing_oneof
    return oneof is not None and len(oneof.fields) == 1 and oneof.name == f"_{field.name}"


def _message_class(descriptor: Descriptor) -> type[Message]:
    return cast("type[Message]", descriptor._concrete_class)  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue]


def _without_none(hint: object) -> tuple[object, bool]:
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    args = get_args(hint)
    rest = tuple(arg for arg in args if arg is not type(None))
    return (rest[0] if len(rest) == 1 else hint), len(rest) < len(args)


def _origin_of_new_type(hint: object) -> object:
    while (base := getattr(hint, "__supertype__", None)) is not None:
        hint = base
    return hint


def _text(hint: object) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _fail(value: object) -> object:
    raise ValueError(f"{value!r} cannot be converted")


def _none_for_zero(decode: Convert) -> Convert:
    return lambda number: decode(number) if number else None


def _tuple_converters(encode: Convert | None, decode: Convert | None) -> tuple[Convert | None, Convert | None]:
    return (
        None if encode is None else lambda values: [encode(value) for value in values],
        tuple if decode is None else lambda values: tuple([decode(value) for value in values]),
    )


def _map_converters(encode: Convert | None, decode: Convert | None) -> tuple[Convert | None, Convert | None]:
    return (
        None if encode is None else lambda values: {key: encode(value) for key, value in values.items()},
        dict if decode is None else lambda values: {key: decode(value) for key, value in values.items()},
    )


def _encoder(message: type[Message], fields: list[_Field]) -> Convert:
    names = tuple(field.name for field in fields)
    # A field of None is left out by protobuf's constructor, which is what absent means.
    special = tuple((index, field.encode) for index, field in enumerate(fields) if field.encode is not None)
    if not names:
        return lambda value: message()
    read = _reader(names)
    make = cast("Callable[..., Message]", message)

    def encode(value: Any) -> Message:
        values = list(read(value))
        for index, convert in special:
            if (inner := values[index]) is not None:
                values[index] = convert(inner)
        return make(**dict(zip(names, values, strict=True)))

    return encode


def _decoder(cls: type, fields: list[_Field]) -> Convert:
    names = tuple(field.name for field in fields)
    special = tuple((index, field.decode) for index, field in enumerate(fields) if field.decode is not None)
    maybe = tuple((index, field.name) for index, field in enumerate(fields) if field.presence)
    if not names:
        return lambda message: cls()
    read = _reader(names)

    def decode(message: Any) -> Any:
        values = list(read(message))
        absent = [index for index, name in maybe if not message.HasField(name)]
        for index in absent:
            values[index] = None
        for index, convert in special:
            if index not in absent:
                values[index] = convert(values[index])
        return cls(**dict(zip(names, values, strict=True)))

    return decode


def _reader(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """All attributes in one call."""
    if len(names) == 1:
        name = names[0]
        return lambda value: (getattr(value, name),)
    return attrgetter(*names)
