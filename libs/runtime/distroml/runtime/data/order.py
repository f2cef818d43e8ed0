"""The global sample order: a permutation of the data set that depends on seed and epoch, and on nothing else.

The permutation is computed, not stored: a Feistel network over the next power of four, walked until the value falls
into the range ("cycle walking"). Any range of the order costs time in its length only, however large the data set,
and does not depend on a library's random number generator, whose stream may change between versions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ROUNDS = 6
_MASK64 = (1 << 64) - 1

Words = npt.NDArray[np.uint64]


def _mix(value: int) -> int:
    """One splitmix64 step on a Python integer: scatters seed, epoch and round into independent round keys."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _mix_words(value: Words) -> Words:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """The order in which an epoch visits a data set of `size` samples; `shuffle=False` is the data set's own."""

    size: int
    seed: int
    epoch: int
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"an order needs at least one sample, got {self.size}")

    def samples(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The data set indices at places `[start, stop)` of the order; raises `ValueError` outside `[0, size]`."""
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"range [{start}, {stop}) is not inside an epoch of {self.size} samples")
        places = np.arange(start, stop, dtype=np.uint64)
        if not self.shuffle:
            return places.astype(np.int64)
        return self._permute(places).astype(np.int64)

    def _permute(self, places: Words) -> Words:
        # Half the bits of the smallest power of four that holds the data set: at most 4 walks on average.
        half = max(1, ((self.size - 1).bit_length() + 1) // 2)
        key = _mix(_mix(self.seed & _MASK64) ^ (self.epoch & _MASK64))
        keys = [np.uint64(_mix(key + round_)) for round_ in range(_ROUNDS)]
        bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
        values = places.copy()
        outside = np.ones(len(values), dtype=bool)
        while outside.any():
            values[outside] = _feistel(values[outside], keys, bits, mask)
            outside = values >= np.uint64(self.size)
        return values


def _feistel(values: Words, keys: list[np.uint64], bits: np.uint64, mask: np.uint64) -> Words:
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix_words(right + key) & mask)
    return (left << bits) | right
