"""Sums over the ranks of a tp axis, and the two operators that enclose a split region.

They are Megatron's f and g (Shoeybi et al., arXiv:1909.08053, section 3): what enters is copied forward and its
gradient summed backward; what leaves is summed forward and its gradient copied backward. Both sums give the same bits
on every rank, hence so do all activations and all gradients outside of regions, without a further exchange.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from distroml.runtime.elastic import communication


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

    def gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """The ranks' tensors one after another along `dim`."""
        ...

    def scatter(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's even part along `dim` of the sum over the ranks."""
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
        with communication():
            dist.all_reduce(total, group=self.group)
        return total

    def gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """An all-gather, along the outermost dimension as the wire has it."""
        own = tensor.movedim(dim, 0).contiguous()
        whole = own.new_empty((self.degree * own.shape[0], *own.shape[1:]))
        with communication():
            dist.all_gather_into_tensor(whole, own, group=self.group)
        return whole.movedim(0, dim).contiguous()

    def scatter(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """A reduce-scatter, along the outermost dimension as the wire has it."""
        parts = tensor.movedim(dim, 0).contiguous()
        own = parts.new_empty((parts.shape[0] // self.degree, *parts.shape[1:]))
        with communication():
            dist.reduce_scatter_tensor(own, parts, group=self.group)
        return own.movedim(0, dim).contiguous()


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


def own_part(tensor: torch.Tensor, dim: int, ranks: Ranks) -> torch.Tensor:
    """This rank's even part of `tensor` along `dim`: a view."""
    size = tensor.shape[dim] // ranks.degree
    return tensor.narrow(dim, ranks.rank * size, size)
