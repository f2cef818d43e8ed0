"""Where a split region begins and ends: sums over the tp ranks, and random numbers that are a rank's own.

The pair of operators is Megatron's f and g (Shoeybi et al., arXiv 1909.08053, section 3): what enters is copied forward
and its gradient summed backward; what leaves is summed forward and its gradient copied backward. Both sums give the same
bits on every rank, hence so do all activations and all gradients outside of regions, without a further exchange.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist


class Ranks(Protocol):
    """The ranks of a tp axis as one of them sees them."""

    @property
    def rank(self) -> int:
        """This rank's place on the axis."""
        ...

    @property
    def degree(self) -> int:
        """How many there are."""
        ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, of equal bits on all of them; `tensor` keeps its values."""
        ...


@dataclass(frozen=True, slots=True)
class GroupRanks:
    """The ranks of a process group."""

    group: dist.ProcessGroup
    rank: int
    degree: int

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """An all-reduce of a copy."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        ctx.ranks = ranks
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return ctx.ranks.sum(gradients[0]), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        return ranks.sum(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


def enter(tensor: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """`tensor` itself; its gradient is the sum of the ranks' gradients."""
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        return tensor
    return _Enter.apply(tensor, ranks)  # pyright: ignore[reportReturnType]  # torch leaves `apply` untyped


def leave(tensor: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """The sum of the ranks' tensors; each gets the whole gradient."""
    return _Leave.apply(tensor, ranks)  # pyright: ignore[reportReturnType]


@dataclass(slots=True)
class Region:
    """One column-to-row passage on one rank.

    Modules that are handed the very same tensor (queries, keys and values; gate and up) share one `enter`, hence one sum
    in the backward pass instead of three.

    Attributes:
        ranks: the tp axis.
        random: give the rank its own random numbers inside.
    """

    ranks: Ranks
    random: bool
    _entered: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list[tuple[torch.Tensor, torch.Tensor]])
    _common: list[torch.Tensor] = field(default_factory=list[torch.Tensor])

    def enter(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor for use inside."""
        for outside, inside in self._entered:
            if outside is tensor and inside.requires_grad == (tensor.requires_grad and torch.is_grad_enabled()):
                return inside
        inside = enter(tensor, self.ranks)
        self._entered.append((tensor, inside))
        return inside

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
