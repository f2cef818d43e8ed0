"""Values that are no tensors of the state, to msgspec bytes and back to equal values; never pickle.

Beyond what msgpack knows (None, bool, int, float, str, bytes, list, dict with text keys) it keeps tuples, sets,
integers past 64 bits, dicts with other keys, dtypes, and small tensors and arrays such as random generator states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import msgspec
import numpy as np
import torch

from distroml.runtime.checkpoint.errors import CheckpointError, UnsupportedState
from distroml.runtime.checkpoint.tensors import dtype_name, dtype_of, tensor_bytes, tensor_from

_TUPLE, _SET, _FROZENSET, _INT, _PAIRS, _DTYPE, _TENSOR, _ARRAY = range(1, 9)
_MAX_DEPTH = 64
_ARRAY_KINDS = "biuf"

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def encode_plain(value: object, where: str = "value") -> bytes:
    """Bytes of `value`, the same for equal values of the same order.

    Raises:
        UnsupportedState: a part of it has another type; `where` says which.
    """
    try:
        return msgspec.msgpack.encode(_lower(value, where, 0))
    except (msgspec.MsgspecError, OverflowError, UnicodeEncodeError) as error:
        raise UnsupportedState(where, str(error)) from None


def decode_plain(data: bytes | bytearray | memoryview) -> object:
    """The value that `encode_plain` was given; raises `CheckpointError` for other bytes."""
    try:
        return cast(object, msgspec.msgpack.decode(data, ext_hook=_raise_up))
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"a saved value cannot be read: {error}") from None


def _lower(value: object, where: str, depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise UnsupportedState(where, f"it is nested more than {_MAX_DEPTH} deep (or contains itself)")
    if value is None or isinstance(value, bool | str):
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, int):
        number = int(value)
        return number if -(2**63) <= number < 2**64 else msgspec.msgpack.Ext(_INT, str(number).encode())
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, list):
        return _lower_all(cast("list[object]", value), where, depth)
    if isinstance(value, tuple):
        return _ext(_TUPLE, _lower_all(list(cast("tuple[object, ...]", value)), where, depth))
    if isinstance(value, set | frozenset):
        lowered = [_lower(item, where, depth + 1) for item in cast("set[object]", value)]
        ordered = sorted(lowered, key=msgspec.msgpack.encode)
        return _ext(_SET if isinstance(value, set) else _FROZENSET, ordered)
    if isinstance(value, Mapping):
        return _lower_mapping(cast("Mapping[object, object]", value), where, depth)
    if isinstance(value, torch.dtype):
        return msgspec.msgpack.Ext(_DTYPE, dtype_name(value, where).encode())
    if isinstance(value, torch.Tensor):
        return _ext(_TENSOR, [dtype_name(value.dtype, where), list(value.shape), bytes(tensor_bytes(value, where))])
    if isinstance(value, np.ndarray | np.generic):
        array = cast("Array", np.asarray(cast(object, value)))
        if array.dtype.kind in _ARRAY_KINDS:
            little = array.dtype.newbyteorder("<")
            return _ext(_ARRAY, [little.str, list(array.shape), array.astype(little).tobytes()])
    kind = type(cast(object, value))
    raise UnsupportedState(
        where,
        f"values of {kind.__module__}.{kind.__qualname__} are not stored; "
        "use tensors, numbers, text, bytes, lists, tuples, sets and dicts",
    )


def _lower_all(values: list[object], where: str, depth: int) -> list[object]:
    return [_lower(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(values)]


def _lower_mapping(value: Mapping[object, object], where: str, depth: int) -> object:
    if all(type(key) is str for key in value):
        return {str(key): _lower(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    return _ext(
        _PAIRS,
        [[_lower(key, where, depth + 1), _lower(item, f"{where}[{key!r}]", depth + 1)] for key, item in value.items()],
    )


def _ext(code: int, value: object) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, msgspec.msgpack.encode(value))


def _raise_up(code: int, data: memoryview) -> object:
    if code == _INT:
        return int(bytes(data))
    if code == _DTYPE:
        return dtype_of(str(data, "utf-8"))
    parse = _PARSE.get(code)
    if parse is None:
        raise ValueError(f"unknown kind of value {code}")
    parts: object = msgspec.msgpack.decode(data, ext_hook=_raise_up)
    if not isinstance(parts, list):
        raise ValueError(f"a value of kind {code} is no list")
    return parse(cast("list[object]", parts))


def _to_dict(parts: list[object]) -> dict[object, object]:
    return {key: item for key, item in cast("list[tuple[object, object]]", parts)}


def _to_tensor(parts: list[object]) -> torch.Tensor:
    dtype, shape, data = msgspec.convert(parts, tuple[str, list[int], bytes])
    return tensor_from(bytearray(data), dtype_of(dtype), tuple(shape))


def _to_array(parts: list[object]) -> object:
    dtype, shape, data = msgspec.convert(parts, tuple[str, list[int], bytes])
    kind = np.dtype(dtype)
    if kind.kind not in _ARRAY_KINDS:
        raise ValueError(f"no array of {dtype} is ever saved")
    return np.frombuffer(data, dtype=kind).reshape(shape).copy()


_PARSE: dict[int, Callable[[list[object]], object]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
    _PAIRS: _to_dict,
    _TENSOR: _to_tensor,
    _ARRAY: _to_array,
}
