"""Where a split region begins and ends on one rank: what enters, and random numbers that are the rank's own.

Where activations are copies, all tp ranks must draw the same dropout mask; where they are divided, each its own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from distroml.runtime.parallel.tensor.parts import Mend, part_type
from distroml.runtime.parallel.tensor.sequence import Along, Kept, Stretch, keep_own
from distroml.runtime.parallel.tensor.streams import Common, begin_own, end_own
from distroml.runtime.parallel.tensor.sums import Ranks, enter, leave


@dataclass(slots=True)
class Region:
    """One column-to-row passage on one rank.

    Modules that are handed the very same tensor (queries, keys and values; gate and up) share one `enter`, hence one
    sum in the backward pass instead of three.

    Attributes:
        ranks: the tp axis.
        random: give the rank its own random numbers inside.
        mend: what activations inside mend of the code around them, if anything: they have a type of their own then.
        along: the sequence, where hidden states may be divided along it.
        batch: samples in what entered last.
    """

    ranks: Ranks
    random: bool
    mend: Mend = ""
    along: Along | None = None
    batch: int = 1
    part: type[torch.Tensor] | None = field(init=False)
    _entered: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list[tuple[torch.Tensor, torch.Tensor]])
    _kept: list[Kept] = field(default_factory=list[Kept])
    _common: Common | None = None

    def __post_init__(self) -> None:
        self.part = part_type(self.ranks, self.mend, lambda: self.batch) if self.mend else None

    def enter(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor for use inside."""
        for outside, inside in self._entered:
            if outside is tensor and inside.requires_grad == (tensor.requires_grad and torch.is_grad_enabled()):
                return inside
        if self.along is not None and isinstance(tensor, Stretch):
            inside = self.along.enter(tensor)
            if inside.requires_grad:
                self._kept.append(Kept(tensor, inside, self.along))
        else:
            inside = enter(tensor, self.ranks)
        self.batch = inside.shape[0] if inside.ndim > 2 else 1
        self._entered.append((tensor, inside))
        return inside

    def keeping(self) -> AbstractContextManager[Any]:
        """Around a column's own forward pass: of what it keeps of its input, ranks keep their own stretch."""
        along = self.along
        if along is None or not along.keeps_own or not self._kept:
            return nullcontext()
        return keep_own(tuple(self._kept))

    def leave(self, output: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of a row's outputs, or the rank's stretch of it."""
        if self.along is not None and self.along.divided:
            return self.along.leave(output)
        return leave(output, self.ranks)

    def mark(self, output: torch.Tensor) -> torch.Tensor:
        """A column's output as what mends, if it shall: one type in a region, which its columns share."""
        return output if self.part is None else output.as_subclass(self.part)

    def opened(self, device: torch.device, training: bool) -> None:
        """A column's output is there: what is drawn from now on is this rank's own. A second column changes nothing."""
        if not (self.random and training) or self._common is not None:
            return
        if self.along is not None and self.along.divided:
            return  # the whole block's are
        self._common = begin_own(device, self.ranks.rank)

    def closed(self) -> None:
        """The row's input is there: random numbers are again those that all tp ranks share."""
        self._entered.clear()
        self._kept.clear()
        if self._common is not None:
            end_own(self._common)
            self._common = None

    def reset(self) -> None:
        """A block begins: whatever an aborted pass left open is of no meaning (recomputation stops in the middle)."""
        self._entered.clear()
        self._kept.clear()
        self._common = None
