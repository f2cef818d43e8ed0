"""A block with made-up parameters, to try things on: of a size that training could give them, always the same."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

# Weights of more elements are overlapping views of a short row of numbers, and get no gradient.
LARGE_WEIGHT = 4_000_000


def with_values(block: nn.Module, dtype: torch.dtype, device: str) -> nn.Module:
    """A copy of `block` in `dtype` on `device`, in evaluation mode.

    The block's own values are not taken: biases that are still zero would hide that they are added twice.

    Args:
        block: on any device; is not changed.
        dtype: of its floating-point parameters and buffers.
        device: "cpu" or "meta".
    """
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}
    for name, parameter in block.named_parameters():
        memo[id(parameter)] = _made(name, parameter, dtype, device, generator)
    for buffer in block.buffers():
        kind = dtype if buffer.is_floating_point() else buffer.dtype
        if buffer.is_meta and buffer.is_floating_point():
            value = torch.randn(buffer.shape, dtype=kind, generator=generator)
        else:
            value = torch.ones(buffer.shape, dtype=kind) if buffer.is_meta else buffer.detach().to("cpu", kind)
        memo[id(buffer)] = value.to(device, copy=True)
    made = copy.deepcopy(block, memo)
    made.eval()
    return made


def _made(
    name: str, parameter: nn.Parameter, dtype: torch.dtype, device: str, generator: torch.Generator
) -> nn.Parameter:
    shape = parameter.shape
    kind = dtype if parameter.is_floating_point() else parameter.dtype
    large = parameter.numel() > LARGE_WEIGHT
    trains = parameter.is_floating_point() and not large
    if device == "meta":
        return nn.Parameter(torch.empty(shape, dtype=kind, device=device), requires_grad=parameter.is_floating_point())
    if large:
        strides = [2 * (len(shape) - dim) - 1 for dim in range(len(shape))]
        length = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        row = torch.randn(length, dtype=dtype, generator=generator) / shape[-1] ** 0.5
        return nn.Parameter(row.to(kind).as_strided(shape, strides), requires_grad=False)
    noise = torch.randn(shape, dtype=dtype, generator=generator)
    if parameter.ndim > 1:
        noise /= shape[-1] ** 0.5
    else:
        noise = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    return nn.Parameter(noise.to(kind), requires_grad=trains)
