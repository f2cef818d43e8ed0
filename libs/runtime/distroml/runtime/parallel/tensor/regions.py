"""Where a split region begins and ends on one rank: what enters, and random numbers that are the rank's own."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from distroml.runtime.parallel.tensor.parts import Mend, part_type
from distroml.runtime.parallel.tensor.sums import Ranks, enter


@dataclass(slots=True)
class Region:
    """One column-to-row passage on one rank.

    Modules that are handed the very same tensor (queries, keys and values; gate and up) share one `enter`, hence one sum
    in the backward pass instead of three.

    Attributes:
        ranks: the tp axis.
        random: give the rank its own random numbers inside.
        batch: samples in what entered last.
        part: the type of activations inside, where they mend the code around them.
    """

    ranks: Ranks
    random: bool
    batch: int = 1
    part: type[torch.Tensor] | None = None
    _entered: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list[tuple[torch.Tensor, torch.Tensor]])
    _common: list[torch.Tensor] = field(default_factory=list[torch.Tensor])

    def enter(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor for use inside."""
        for outside, inside in self._entered:
            if outside is tensor and inside.requires_grad == (tensor.requires_grad and torch.is_grad_enabled()):
                return inside
        inside = enter(tensor, self.ranks)
        self.batch = tensor.shape[0] if tensor.ndim > 2 else 1
        self._entered.append((tensor, inside))
        return inside

    def mark(self, output: torch.Tensor, mend: Mend) -> torch.Tensor:
        """A column's output as what mends, if it shall: one type in a region, which its columns share."""
        if not mend:
            return output
        self.part = self.part or part_type(self.ranks, mend, lambda: self.batch)
        return output.as_subclass(self.part)

    def opened(self, training: bool) -> None:
        """A column's output is there: from now on random numbers are this rank's own.

        Their seed is one draw of the generator that all tp ranks share plus the rank. A recomputation that starts with
        the generator's state of the first pass thus repeats them, and whatever follows the region is not displaced.
        """
        if not (self.random and training) or self._common:
            return
        seed = int(torch.randint(2**62, ())) + self.ranks.rank
        self._common.append(torch.get_rng_state())
        if torch.cuda.is_available():
            self._common.append(torch.cuda.get_rng_state())
        torch.manual_seed(seed)

    def reset(self) -> None:
        """A new pass over the block begins: forget one that was left half way, as recomputation does."""
        self._entered.clear()
        self._common.clear()

    def closed(self) -> None:
        """The row's input is there: random numbers are again those that all tp ranks share."""
        self._entered.clear()
        if self._common:
            torch.set_rng_state(self._common[0])
            if len(self._common) > 1:
                torch.cuda.set_rng_state(self._common[1])
            self._common.clear()
