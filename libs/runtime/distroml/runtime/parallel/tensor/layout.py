"""How one parameter is divided over the tp axis: which slices of the global tensor a rank holds, in local order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, cast

import torch


@dataclass(frozen=True, slots=True)
class Layout:
    """A dimension made of segments, each of which is divided evenly: rank r holds the r-th part of every segment.

    One segment is what DTensor calls `Shard(dim)`. A fused projection has several: the rows of a weight that computes
    queries, keys and values at once are (queries, keys, values), and a rank needs its heads of each. The DTensor of
    such a parameter is `Shard(dim)` of a *reordered* tensor: what is local to rank r are `pieces(r, degree)` of the
    tensor that the unparallelised model has, one after another. Who reads or writes checkpoints goes by these.

    Attributes:
        dim: the dimension of the tensor that is divided.
        segments: sizes along `dim` in the global tensor; their sum is its size.
    """

    dim: int
    segments: tuple[int, ...]

    def divides(self, degree: int) -> bool:
        """Whether every segment has `degree` equal parts."""
        return all(size % degree == 0 for size in self.segments)

    def pieces(self, rank: int, degree: int) -> tuple[slice, ...]:
        """Slices along `dim` of the global tensor, in the order in which they lie in the local one."""
        starts = itertools.accumulate(self.segments, initial=0)
        parts = ((start, size // degree) for start, size in zip(starts, self.segments, strict=False))
        return tuple(slice(start + rank * part, start + (rank + 1) * part) for start, part in parts)

    def size(self, degree: int) -> int:
        """Size along `dim` of the local tensor."""
        return sum(self.segments) // degree

    def take(self, whole: torch.Tensor, rank: int, degree: int) -> torch.Tensor:
        """The local tensor of `rank`; shares memory with `whole` where one slice is enough."""
        parts = [self._narrow(whole, piece) for piece in self.pieces(rank, degree)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, self.dim)

    def restore(self, dealt: torch.Tensor, degree: int) -> torch.Tensor:
        """The whole tensor from all ranks' parts one after the other, as `DTensor.full_tensor` gives them."""
        if len(self.segments) == 1:
            return dealt
        sizes = [size // degree for size in self.segments]
        chunks = dealt.chunk(degree, self.dim)
        parts = [cast("list[torch.Tensor]", cast("Any", torch).split(chunk, sizes, self.dim)) for chunk in chunks]
        return torch.cat([part[segment] for segment in range(len(sizes)) for part in parts], self.dim)

    def _narrow(self, whole: torch.Tensor, piece: slice) -> torch.Tensor:
        return whole.narrow(self.dim, piece.start, piece.stop - piece.start)
