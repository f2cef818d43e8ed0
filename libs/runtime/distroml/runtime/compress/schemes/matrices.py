"""Which gradients of a buffer are matrices that low rank pays for, and batches of them without a copy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from distroml.runtime.compress.layout import Layout, Piece


@dataclass(frozen=True, slots=True)
class Batch:
    """`count` matrices of `rows` x `columns`, `step` elements apart in a buffer from `offset` on."""

    offset: int
    step: int
    count: int
    rows: int
    columns: int

    @property
    def offsets(self) -> torch.Tensor:
        """Where each one begins: int64 `[count]`."""
        return torch.arange(self.count) * self.step + self.offset

    def of(self, buffer: torch.Tensor) -> torch.Tensor:
        """A view `[count, rows, columns]` of a flat buffer."""
        return buffer.as_strided(
            (self.count, self.rows, self.columns),
            (self.step, self.columns, 1),
            buffer.storage_offset() + self.offset,
        )


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as the matrix whose sides sum to least, its dimensions kept in order.

    A convolution `[out, in, h, w]` is mostly `out` x `in * h * w`; a stack of experts `[n, a, b]` is `n * a` x `b`. A
    vector is one row.
    """
    cuts = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in range(len(shape) + 1)]
    return min(cuts, key=sum)


def divide(layout: Layout, pays: Callable[[int, int], bool]) -> tuple[list[Batch], list[Piece]]:
    """Batches of the matrices that `pays(rows, columns)` holds for, and the pieces that go whole.

    Matrices of one shape are one batch where they lie at equal distances, as those of equal layers do.
    """
    places: dict[tuple[int, int], list[int]] = {}
    whole: list[Piece] = []
    for piece in layout.pieces:
        rows, columns = as_matrix(piece.shape)
        if piece.numel and pays(rows, columns):
            places.setdefault((rows, columns), []).append(piece.offset)
        elif piece.numel:
            whole.append(piece)
    batches: list[Batch] = []
    for (rows, columns), offsets in places.items():
        offsets.sort()
        while offsets:
            count = _evenly(offsets)
            step = offsets[1] - offsets[0] if count > 1 else rows * columns
            batches.append(Batch(offsets[0], step, count, rows, columns))
            del offsets[:count]
    return batches, whole


def _evenly(offsets: list[int]) -> int:
    """How many of the first ones lie at equal distances."""
    count = min(len(offsets), 2)
    while count < len(offsets) and offsets[count] - offsets[count - 1] == offsets[1] - offsets[0]:
        count += 1
    return count


def refreshed(vectors: torch.Tensor, fresh: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Each row with norm 1; rows that are zero or not finite come from `fresh()`, of the same shape.

    A direction that a gradient had no part in would otherwise stay zero for ever.
    """
    norms = vectors.double().square().sum(dim=-1, keepdim=True).sqrt()
    alive = (norms > 0) & norms.isfinite()
    vectors = (vectors / norms).to(torch.float32)
    return vectors if bool(alive.all()) else torch.where(alive, vectors, fresh())
