"""Where verified chunks go: straight into a live tensor, or into a buffer that a slice is copied from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from distroml.manifest import BytesEntry, ChunkRef, TensorEntry
from distroml.runtime.checkpoint.tensors import dtype_of, writable_bytes


@dataclass(slots=True)
class Fill:
    """Bytes `[start, start + len(data))` of an entry, filled chunk by chunk.

    Attributes:
        entry: what is read.
        start: the first byte of the entry that is wanted.
        data: where the bytes go; the live tensor's own memory where that has the entry's layout.
        result: the live tensor and the saved slice's place in `data`, where it must be copied at the end.
    """

    entry: TensorEntry | BytesEntry
    start: int
    data: memoryview
    result: tuple[torch.Tensor, torch.Tensor] | None = field(default=None)

    def chunks(self) -> Iterator[tuple[ChunkRef, int]]:
        """The chunks needed and where in the entry each begins."""
        begin = 0
        for chunk in self.entry.chunks:
            if begin < self.start + len(self.data) and begin + chunk.length > self.start:
                yield chunk, begin
            begin += chunk.length

    def take(self, begin: int, chunk: memoryview) -> None:
        """A verified chunk, which begins at byte `begin` of the entry."""
        low = max(begin, self.start)
        high = min(begin + len(chunk), self.start + len(self.data))
        self.data[low - self.start : high - self.start] = chunk[low - begin : high - begin]

    def finish(self) -> None:
        """All chunks are there."""
        if self.result is not None:
            live, saved = self.result
            live.copy_(saved)


def fill_value(entry: BytesEntry) -> Fill:
    """Read a plain value whole."""
    return Fill(entry, 0, memoryview(bytearray(sum(chunk.length for chunk in entry.chunks))))


def fill_tensor(entry: TensorEntry, offsets: Sequence[int], lengths: Sequence[int], live: torch.Tensor) -> Fill:
    """Read the box at `offsets` of `lengths` of an entry's slice into `live`, which has the box's shape."""
    dtype = dtype_of(entry.dtype)
    if tuple(lengths) == entry.sizes and live.dtype == dtype and (direct := writable_bytes(live)) is not None:
        return Fill(entry, 0, direct)
    strides = _strides(entry.sizes)
    first = sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))
    last = first + sum((length - 1) * stride for length, stride in zip(lengths, strides, strict=True))
    data = bytearray((last - first + 1) * dtype.itemsize if math.prod(lengths) else 0)
    if not data:
        return Fill(entry, 0, memoryview(data))
    saved = torch.frombuffer(data, dtype=dtype).as_strided(tuple(lengths), strides)
    return Fill(entry, first * dtype.itemsize, memoryview(data), (live, saved))


def _strides(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(sizes[dim + 1 :]) for dim in range(len(sizes)))
