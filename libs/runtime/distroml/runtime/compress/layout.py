"""What a flat buffer of gradients holds: the shapes that a scheme may use, free of any parameter object."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """This rank's part of one gradient, of `shape`, from element `offset` of the buffer on.

    `name` is the parameter's in the whole model; where a plan divides parameters, `shape` is of the local part.
    """

    name: str
    offset: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """A buffer of `numel` float32 elements. Elements that no piece covers are padding, and zero."""

    numel: int
    pieces: tuple[Piece, ...]
