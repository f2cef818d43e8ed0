"""Which part of the whole, unparallelised tensor a rank holds, and where in its own memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard  # pyright: ignore[reportPrivateUsage]

from distroml.runtime.checkpoint.errors import UnsupportedState

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes, one of each per dimension."""


@dataclass(frozen=True, slots=True)
class Rows:
    """In which order a parameter holds the rows of the whole one: tensor parallelism deals out fused projections so.

    Attributes:
        dim: the dimension that is reordered.
        ranges: (start, stop) of the whole parameter's rows, in the order in which they are held.
    """

    dim: int
    ranges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        expected = 0
        for start, stop in sorted(self.ranges):
            if start != expected or stop < start:
                raise ValueError(f"the ranges {self.ranges} do not hold each row once")
            expected = stop

    @classmethod
    def dealt(cls, dim: int, segments: Sequence[int], degree: int) -> Rows:
        """Each segment (queries, keys, values) cut in `degree` equal parts; rank r holds the r-th part of each."""
        starts = list(itertools.accumulate(segments, initial=0))
        parts = [size // degree for size in segments]
        return cls(
            dim,
            tuple(
                (start + rank * part, start + (rank + 1) * part)
                for rank in range(degree)
                for start, part in zip(starts, parts, strict=False)
            ),
        )

    @property
    def count(self) -> int:
        """How many rows there are."""
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of the whole tensor that lies as a box in this rank's memory.

    Attributes:
        local: where it begins in the rank's own tensor.
        offsets: where it begins in the whole tensor.
        sizes: its shape.
    """

    local: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def of_local(self, tensor: torch.Tensor) -> torch.Tensor:
        """The piece in the rank's own tensor, a view."""
        return narrow(tensor, self.local, self.sizes)

    def holds(self, offsets: Sequence[int], sizes: Sequence[int]) -> bool:
        """Whether that box of the whole tensor lies within the piece."""
        return all(
            mine <= offset and offset + size <= mine + extent
            for mine, extent, offset, size in zip(self.offsets, self.sizes, offsets, sizes, strict=True)
        )

    def part(self, tensor: torch.Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
        """That box of the whole tensor in the rank's own one, a view."""
        local = [at + offset - mine for at, offset, mine in zip(self.local, offsets, self.offsets, strict=True)]
        return narrow(tensor, local, sizes)

    @property
    def index(self) -> tuple[slice, ...]:
        """The piece in the whole tensor."""
        return tuple(slice(offset, offset + size) for offset, size in zip(self.offsets, self.sizes, strict=True))


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The rank's own memory of a tensor; writing to it changes the tensor."""
    with torch.no_grad():
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def local_pieces(tensor: torch.Tensor, rows: Rows | None = None, where: str = "tensor") -> list[Piece]:
    """The pieces of the whole tensor that this rank holds; none where it holds nothing of it.

    Raises:
        UnsupportedState: its placements say no part of the whole (partial sums, or an unknown stride).
    """
    if rows is not None and rows.count != tensor.shape[rows.dim]:
        raise UnsupportedState(where, f"its layout has {rows.count} rows, the tensor {tensor.shape[rows.dim]}")
    if isinstance(tensor, DTensor):
        coordinate = tensor.device_mesh.get_coordinate()
        if coordinate is None:
            return []
        mesh_shape = tuple(int(extent) for extent in tensor.device_mesh.shape)
        box = box_of(tuple(tensor.shape), mesh_shape, coordinate, tensor.placements, where)
        held = tuple(tensor.to_local().shape)
        if held != box[1]:
            raise UnsupportedState(where, f"this rank holds {held} of it, its placements say {box[1]}")
    else:
        box = (0,) * tensor.dim(), tuple(tensor.shape)
    return list(whole_pieces(box, rows))


def whole_pieces(box: Box, rows: Rows | None) -> Iterator[Piece]:
    """A box of the tensor as it is held, as pieces of the whole one."""
    offsets, sizes = box
    begin = (0,) * len(sizes)
    if rows is None or not math.prod(sizes):
        yield Piece(begin, offsets, sizes)
        return
    dim, low, high = rows.dim, offsets[rows.dim], offsets[rows.dim] + sizes[rows.dim]
    place = 0
    for start, stop in rows.ranges:
        first, last = max(place, low), min(place + stop - start, high)
        if first < last:
            yield Piece(
                _with(begin, dim, first - low),
                _with(offsets, dim, start + first - place),
                _with(sizes, dim, last - first),
            )
        place += stop - start


def box_of(
    shape: Sequence[int], mesh_shape: Sequence[int], coordinate: Sequence[int], placements: Sequence[object], where: str
) -> Box:
    """The box that the rank at `coordinate` holds.

    FSDP shards what tensor parallelism has sharded before it, and says so by a strided placement on its axis, which
    lies left of the other: so plain shards are cut first. Each cut is `torch.chunk`, on whatever is left.
    """
    offsets, sizes = [0] * len(shape), list(shape)
    plain_axes = [(axis, _dim_of(one, shape)) for axis, one in enumerate(placements) if isinstance(one, Shard)]
    strided: list[tuple[int, int]] = []
    for axis, placement in enumerate(placements):
        if isinstance(placement, _StridedShard):
            dim = _dim_of(placement, shape)
            right = [mesh_shape[other] for other in range(axis + 1, len(mesh_shape)) if (other, dim) in plain_axes]
            if placement.split_factor != math.prod(right):
                raise UnsupportedState(where, f"its placements {tuple(placements)} are not those of FSDP over shards")
            strided.append((axis, dim))
        elif not isinstance(placement, Replicate | Shard):
            raise UnsupportedState(where, f"its placement {placement} is no part of the whole tensor")
    for axis, dim in (*plain_axes, *reversed(strided)):
        chunk = -(-sizes[dim] // mesh_shape[axis])
        start = min(chunk * coordinate[axis], sizes[dim])
        offsets[dim] += start
        sizes[dim] = min(chunk, sizes[dim] - start)
    return tuple(offsets), tuple(sizes)


def _dim_of(placement: object, shape: Sequence[int]) -> int:
    return cast(int, cast(Any, placement).dim) % len(shape)


def _with(values: tuple[int, ...], dim: int, value: int) -> tuple[int, ...]:
    return (*values[:dim], value, *values[dim + 1 :])


def narrow(tensor: torch.Tensor, offsets: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """A box of a tensor, a view."""
    for dim, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        if size != tensor.size(dim):
            tensor = tensor.narrow(dim, offset, size)
    return tensor
