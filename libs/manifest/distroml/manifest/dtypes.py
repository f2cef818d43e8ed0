"""The element types a manifest may name; raw little-endian bytes in C order."""

from __future__ import annotations

from collections.abc import Mapping

ITEM_BYTES: Mapping[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "uint16": 2,
    "int16": 2,
    "uint32": 4,
    "int32": 4,
    "uint64": 8,
    "int64": 8,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes per element by dtype name (torch's name without `torch.`)."""


def item_bytes(dtype: str) -> int:
    """Bytes of one element.

    Raises:
        ValueError: the dtype has no raw layout here (quantized, sub-byte or unknown types).
    """
    try:
        return ITEM_BYTES[dtype]
    except KeyError:
        raise ValueError(
            f"dtype {dtype!r} cannot be stored in a checkpoint; supported are {', '.join(ITEM_BYTES)}"
        ) from None
