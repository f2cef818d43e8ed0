"""How a parameter's elements are dealt out along tp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["column", "row"]


@dataclass(frozen=True, slots=True)
class Split:
    """How one linear layer is divided (Shoeybi et al., arXiv:1909.08053).

    Attributes:
        kind: "column" divides what the layer gives, "row" what it takes.
        sections: lengths of consecutive parts of the divided dimension that are each divided by themselves: queries,
            keys and values in one matrix are three. One section is the ordinary case.
        weight_dim: the dimension of the weight that is divided.
    """

    kind: Kind
    sections: tuple[int, ...]
    weight_dim: int

    @property
    def length(self) -> int:
        """Length of the divided dimension."""
        return sum(self.sections)

    def divides(self, degree: int) -> bool:
        """Whether each section can be dealt out to `degree` ranks."""
        return all(section % degree == 0 for section in self.sections)

    def rows(self, rank: int, degree: int) -> list[slice]:
        """What of the divided dimension lies on `rank`, in the order in which it lies there."""
        found: list[slice] = []
        start = 0
        for section in self.sections:
            part = section // degree
            found.append(slice(start + rank * part, start + (rank + 1) * part))
            start += section
        return found

    def take(self, whole: torch.Tensor, dim: int, rank: int, degree: int) -> torch.Tensor:
        """`rank`'s part of a whole tensor."""
        return torch.cat([whole.narrow(dim, s.start, s.stop - s.start) for s in self.rows(rank, degree)], dim)

    def restore(self, dealt: torch.Tensor, dim: int, degree: int) -> torch.Tensor:
        """The whole tensor from all ranks' parts one after the other: the inverse of `take` over all ranks."""
        if len(self.sections) == 1:
            return dealt
        parts = dealt.chunk(degree, dim)
        widths = [section // degree for section in self.sections]
        pieces = [part.split(widths, dim) for part in parts]
        return torch.cat([piece[number] for number in range(len(widths)) for piece in pieces], dim)
