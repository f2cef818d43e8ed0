"""Gradients of linear layers' weights, computed after the gradients that the stage before waits for.

Zero Bubble Pipeline Parallelism (arXiv 2401.10241) fills the bubble with them. Torch's own way of splitting a backward
pass searches the graph for it, and gives no or wrong gradients where a weight's way does not meet the stage's inputs
as it expects (an encoder-decoder's second embedding, shared weights). Here a linear layer keeps what its weight's
gradient is made of; everything else stays an ordinary backward pass, so that any graph comes out right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F


class Deferred:
    """The weight gradients that one stage still owes."""

    def __init__(self) -> None:
        self._owed: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def owe(self, weight: torch.Tensor, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        """Remember one weight's part of a backward pass."""
        self._owed.append((weight, inputs, gradient))

    def take(self) -> Callable[[], None]:
        """What is owed since the last call, as a function that pays it."""
        owed, self._owed = self._owed, []

        def pay() -> None:
            while owed:
                weight, inputs, gradient = owed.pop()
                rows = gradient.reshape(-1, gradient.shape[-1])
                # By autograd: whoever watches gradients sees this one too, and a part of a DTensor finds the whole.
                torch.autograd.backward([weight], [rows.t() @ inputs.reshape(-1, inputs.shape[-1])])

        return pay

    def attach(self, model: nn.Module) -> None:
        """Let the linear layers of `model` with a weight of their own defer; their forwards are overridden."""
        for layer in model.modules():
            if type(layer) is nn.Linear and "weight" in dict(layer.named_parameters(recurse=False)):
                layer.forward = self._forward(layer)

    def _forward(self, layer: nn.Linear) -> Callable[..., torch.Tensor]:
        def forward(input: torch.Tensor) -> torch.Tensor:
            weight = layer.weight
            plain = not isinstance(weight, DTensor) and weight.dtype == input.dtype
            plain = plain and not torch.is_autocast_enabled(input.device.type)
            if not (plain and input.requires_grad and weight.requires_grad and torch.is_grad_enabled()):
                return F.linear(input, weight, layer.bias)
            return cast("torch.Tensor", cast("Any", _Linear).apply(input, layer.bias, _Weight(weight), self))

        return forward


class _Weight:
    """Keeps a weight out of autograd's sight."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight


class _Linear(torch.autograd.Function):
    """A linear layer whose backward pass leaves the weight's gradient for later.

    The weight is no argument of its own: autograd would tell its watchers of a gradient that is not there yet. It is
    the one that the forward pass saw: sharding and tensor parallelism show a layer other tensors outside of it.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, bias: torch.Tensor | None, held: _Weight, owed: Deferred
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.held, ctx.owed = held, owed
        return F.linear(inputs, held.weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (gradient,) = gradients
        (inputs,) = ctx.saved_tensors
        ctx.owed.owe(ctx.held.weight, inputs, gradient)
        to_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return gradient @ ctx.held.weight, to_bias, None, None
