"""Protocol Buffers' encoding for messages declared as annotated structs: what is encoded, decodes to an equal value.

The few messages of etcd that we use are declared by hand (`messages`): generated code would register their names in
the process's one descriptor pool, where every other etcd package does so too, and the second one fails to import.

Encoding: https://protobuf.dev/programming-guides/encoding/. Kinds: `int` (int64, uint64, enumerations), `bool`,
`bytes`, `str`, messages, and tuples of the last three. A value that equals proto3's default is left out, unless its
type says `| None`: then None is left out and everything else is sent, as fields of a `oneof` want it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

M = TypeVar("M", bound="Message")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK = (1 << 64) - 1
_SMALL = tuple(bytes((value,)) for value in range(128))


class Message(msgspec.Struct, frozen=True):
    """Base of all messages: every field is `name: Annotated[type, number] = default`."""


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: type[Any]
    repeated: bool
    explicit: bool
    tag: bytes
    wire_type: int
    encode: Callable[[Any], bytes]


@cache
def _fields(cls: type[Message]) -> dict[int, _Field]:
    found: dict[int, _Field] = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        type_, number = get_args(hint)
        options = get_args(type_) if get_origin(type_) is UnionType else (type_,)
        explicit = NoneType in options
        (type_,) = (option for option in options if option is not NoneType)
        repeated = get_origin(type_) is tuple
        kind = get_args(type_)[0] if repeated else type_
        wire_type = _VARINT if kind in (int, bool) else _BYTES
        tag = _varint(number << 3 | wire_type)
        found[number] = _Field(name, kind, repeated, explicit, tag, wire_type, _ENCODERS.get(kind, encode))
    return found


def encode(message: Message) -> bytes:
    """The message's bytes."""
    out: list[bytes] = []
    for field in _fields(type(message)).values():
        value = getattr(message, field.name)
        if field.repeated:
            for one in value:
                _put(out, field, one)
        elif value is not None if field.explicit else value:
            _put(out, field, value)
    return b"".join(out)


def decode(cls: type[M], data: bytes) -> M:
    """The message that `data` holds; fields that are not declared are passed over. Raises `ValueError`."""
    fields = _fields(cls)
    values: dict[str, Any] = {}
    at = 0
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            wire_type = tag & 7
            raw: int | bytes
            if wire_type == _VARINT:
                raw, at = _read_varint(data, at)
            else:
                size, at = _read_varint(data, at) if wire_type == _BYTES else (_size_of(wire_type), at)
                raw = data[at : at + size]
                at += size
            field = fields.get(tag >> 3)
            if field is None:
                continue
            if field.wire_type != wire_type:
                raise ValueError(f"{cls.__name__}.{field.name} has wire type {wire_type}")
            value = _get(field.kind, raw)
            values[field.name] = (*values.get(field.name, ()), value) if field.repeated else value
    except IndexError:
        at = len(data) + 1
    if at > len(data):
        raise ValueError(f"{cls.__name__} is cut off after {len(data)} bytes")
    return cls(**values)


def _put(out: list[bytes], field: _Field, value: Any) -> None:
    data = field.encode(value)
    if field.wire_type == _VARINT:
        out += field.tag, data
    else:
        out += field.tag, _varint(len(data)), data


def _get(kind: type[Any], raw: int | bytes) -> Any:
    if isinstance(raw, int):
        return bool(raw) if kind is bool else raw - (1 << 64) if raw >> 63 else raw
    if kind is bytes:
        return raw
    return raw.decode() if kind is str else decode(kind, raw)


def _varint(value: int) -> bytes:
    if 0 <= value < len(_SMALL):
        return _SMALL[value]
    value &= _MASK
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MASK, at + 1
        shift += 7
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _size_of(wire_type: int) -> int:
    if wire_type not in (_FIXED64, _FIXED32):
        raise ValueError(f"{wire_type} is no wire type of proto3")
    return 8 if wire_type == _FIXED64 else 4


_ENCODERS: dict[type[Any], Callable[[Any], bytes]] = {int: _varint, bool: _varint, bytes: bytes, str: str.encode}
