"""Column- and row-parallel linear layers: the user's own modules, with a forward that knows of the other ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from distroml.runtime.elastic import communication
from distroml.runtime.parallel.tensor.regions import Regions


class Exchange(Protocol):
    """Sums over the ranks of one tp group: a process group's, or a proof's."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor with the sum over all ranks, bit-equal on all of them; `tensor` may be overwritten."""
        ...


class GroupExchange:
    """Sums over a process group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `Exchange`."""
        with communication():
            dist.all_reduce(tensor, group=self._group)
        return tensor


class _Spread(torch.autograd.Function):
    """Copies in, the sum of gradients out."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        ctx.exchange = exchange
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        return ctx.exchange.sum(gradients[0].contiguous().clone()), None


class _Gather(torch.autograd.Function):
    """Parts in, their sum out; the gradient is a copy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, exchange: Exchange) -> torch.Tensor:
        return exchange.sum(x.contiguous().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def _here(parameter: Any) -> torch.Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else cast("torch.Tensor", parameter)


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as (in, out), as GPT-2's does under the name Conv1D."""
    return not isinstance(module, nn.Linear)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer. Whether its forward is the usual one is left to the proof."""
    if isinstance(module, nn.Linear):
        return True
    weight = getattr(module, "weight", None)
    conv1d = type(module).__name__ == "Conv1D" and hasattr(module, "nf")
    return conv1d and isinstance(weight, torch.Tensor) and weight.dim() == 2


def _product(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    weight = _here(module.weight)
    return F.linear(x, weight.t() if is_transposed(module) else weight)


def column_forward(module: nn.Module, exchange: Exchange, regions: Regions) -> Callable[..., Any]:
    """The forward of a layer whose outputs are divided: whole in, this rank's outputs out."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        own = _product(module, cast("torch.Tensor", _Spread.apply(x, exchange)))
        bias = module.bias
        if bias is not None:
            own = own + _here(bias)
        regions.enter(x.device)
        return own

    return forward


def row_forward(module: nn.Module, exchange: Exchange, regions: Regions) -> Callable[..., Any]:
    """The forward of a layer whose inputs are divided: this rank's inputs in, whole out; the bias is added once."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        regions.leave(x.device)
        whole = cast("torch.Tensor", _Gather.apply(_product(module, x), exchange))
        bias = module.bias
        return whole if bias is None else whole + bias

    return forward
