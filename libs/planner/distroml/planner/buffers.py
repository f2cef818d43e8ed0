"""The fullest of the buffers in which gradients are summed, filled with whole tensors as the runtime fills them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from distroml.planner.codes import Buffer, Sides

Matrix = tuple[int, int]
"""Rows and columns of a tensor."""


def fullest(tensors: Iterable[Matrix], most: float) -> Buffer:
    """The largest of the buffers that take tensors one after the other, up to `most` elements, or one larger tensor."""
    best = Buffer(0)
    filled, own = 0, Counter[Matrix]()

    def closed() -> Buffer:
        return Buffer(filled, tuple(Sides(*sides, many) for sides, many in own.items()))

    for sides in tensors:
        numel = sides[0] * sides[1]
        if filled and filled + numel > most:
            if filled > best.elements:
                best = closed()
            filled, own = 0, Counter[Matrix]()
        filled += numel
        own[sides] += 1
    return closed() if filled > best.elements else best
