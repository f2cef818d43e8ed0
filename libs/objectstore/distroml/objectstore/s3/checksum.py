"""CRC-32 as S3 carries it: of parts, and of the whole that they add up to.

The whole's sum comes from those of its parts without reading a byte again: appending n zero bits to a message
multiplies its sum by x**n modulo the polynomial (M. Adler's `crc32_combine`, zlib 1.2.13).
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping

HEADER = "x-amz-checksum-crc32"
KIND = "x-amz-checksum-type"
WHOLE = "FULL_OBJECT"

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def checksum(data: bytes | memoryview, so_far: int = 0) -> int:
    """The sum of `data` after what `so_far` is the sum of."""
    return zlib.crc32(data, so_far)


def combined(first: int, second: int, second_bytes: int) -> int:
    """The sum of two pieces one after the other, from their sums and the second's length."""
    return _multiplied(_power_of_x(8 * second_bytes), first) ^ second


def written(value: int) -> str:
    """As a header's value."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def stored(headers: Mapping[str, str]) -> int | None:
    """The sum of the whole object that an answer tells; None where it tells none, or only one of its parts' sums."""
    value = headers.get(HEADER)
    if value is None or "-" in value or headers.get(KIND, WHOLE) != WHOLE:
        return None
    return int.from_bytes(base64.b64decode(value), "big")


def _power_of_x(exponent: int) -> int:
    """x**exponent modulo the polynomial; bits are reversed, the highest is the coefficient of 1."""
    power, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            power = _multiplied(power, square)
        square = _multiplied(square, square)
        exponent >>= 1
    return power


def _multiplied(a: int, b: int) -> int:
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
        bit >>= 1
    return product
