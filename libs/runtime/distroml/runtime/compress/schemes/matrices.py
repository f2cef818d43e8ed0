"""Which gradients of a buffer are matrices that low rank pays for, by shape."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from distroml.runtime.compress.layout import Layout, Piece
from distroml.runtime.compress.lowrank import Matrices
from distroml.runtime.compress.schemes.seeds import uniform


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor seen as the matrix whose sides sum to least, its dimensions kept in order.

    A convolution `[out, in, h, w]` is mostly `out` x `in * h * w`; a stack of experts `[n, a, b]` is `n * a` x `b`. A
    vector is one row.
    """
    cuts = [(math.prod(shape[:cut]), math.prod(shape[cut:])) for cut in range(len(shape) + 1)]
    return min(cuts, key=sum)


def divide(layout: Layout, pays: Callable[[int, int], bool]) -> tuple[list[Matrices], list[Piece]]:
    """The matrices that `pays(rows, columns)` holds for, by shape, and the pieces that go whole."""
    offsets: dict[tuple[int, int], list[int]] = {}
    whole: list[Piece] = []
    for piece in layout.pieces:
        rows, columns = as_matrix(piece.shape)
        if piece.numel and pays(rows, columns):
            offsets.setdefault((rows, columns), []).append(piece.offset)
        elif piece.numel:
            whole.append(piece)
    batches = [Matrices(torch.tensor(places), *sides) for sides, places in offsets.items()]
    return batches, whole


def refreshed(factors: torch.Tensor, seed: int) -> torch.Tensor:
    """Each column of `[count, side, rank]` with norm 1; those that are zero or not finite drawn anew from `seed`.

    A direction that a gradient had no part in would otherwise stay zero for ever.
    """
    norms = factors.double().square().sum(dim=1, keepdim=True).sqrt()
    alive = (norms > 0) & norms.isfinite()
    normal = (factors / norms).to(torch.float32)
    if bool(alive.all()):
        return normal
    return torch.where(alive, normal, uniform(factors.numel(), seed, factors.device).view_as(factors))
