"""Where a split region begins and ends on one rank: what enters, and random numbers that are the rank's own.

Where activations are copies, all tp ranks must draw the same dropout mask; where they are divided, each its own. The
inner stream starts from one number of the common stream and its end is forgotten, so that a block that is computed
again draws the same masks, and what follows it does not depend on how much was drawn inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from distroml.runtime.parallel.randomness import seed_for
from distroml.runtime.parallel.tensor.parts import Mend, part_type
from distroml.runtime.parallel.tensor.sums import Ranks, enter
from distroml.runtime.typed import seed_generators


@dataclass(slots=True)
class Region:
    """One column-to-row passage on one rank.

    Modules that are handed the very same tensor (queries, keys and values; gate and up) share one `enter`, hence one
    sum in the backward pass instead of three.

    Attributes:
        ranks: the tp axis.
        random: give the rank its own random numbers inside.
        mend: what activations inside mend of the code around them, if anything: they have a type of their own then.
        batch: samples in what entered last.
    """

    ranks: Ranks
    random: bool
    mend: Mend = ""
    batch: int = 1
    part: type[torch.Tensor] | None = field(init=False)
    _entered: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list[tuple[torch.Tensor, torch.Tensor]])
    _common: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def __post_init__(self) -> None:
        self.part = part_type(self.ranks, self.mend, lambda: self.batch) if self.mend else None

    def enter(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor for use inside."""
        for outside, inside in self._entered:
            if outside is tensor and inside.requires_grad == (tensor.requires_grad and torch.is_grad_enabled()):
                return inside
        inside = enter(tensor, self.ranks)
        self.batch = tensor.shape[0] if tensor.ndim > 2 else 1
        self._entered.append((tensor, inside))
        return inside

    def mark(self, output: torch.Tensor) -> torch.Tensor:
        """A column's output as what mends, if it shall: one type in a region, which its columns share."""
        return output if self.part is None else output.as_subclass(self.part)

    def opened(self, device: torch.device, training: bool) -> None:
        """A column's output is there: what is drawn from now on is this rank's own. A second column changes nothing."""
        if not (self.random and training) or self._common is not None:
            return
        # Drawn from the CPU's generator, which the tp ranks share too: a GPU's would have to be waited for.
        drawn = int(torch.randint(1 << 62, ()))
        cuda: Any = torch.cuda
        self._common = torch.get_rng_state(), cuda.get_rng_state(device) if device.type == "cuda" else None
        seed_generators(seed_for(drawn, self.ranks.rank))

    def closed(self) -> None:
        """The row's input is there: random numbers are again those that all tp ranks share."""
        self._entered.clear()
        if self._common is not None:
            cpu, gpu = self._common
            torch.set_rng_state(cpu)
            if gpu is not None:
                torch.cuda.set_rng_state(gpu)
            self._common = None

    def reset(self) -> None:
        """A block begins: whatever an aborted pass left open is of no meaning (recomputation stops in the middle)."""
        self._entered.clear()
        self._common = None
