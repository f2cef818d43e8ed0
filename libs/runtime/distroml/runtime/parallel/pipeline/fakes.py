"""Tensors that have a shape and a gradient but no memory. The only user of torch's private fake tensors here.

Parameters are fake, samples are real: an operation on real tensors alone (a mask made from a sample) gives real
values, on which a model may decide; an operation that meets a fake tensor gives a fake one.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def hollow_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters lie on `meta`; buffers are shared with it.

    Raises:
        Whatever the model's own parts raise where they cannot be copied.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    return copy.deepcopy(model, memo)


def fake_state(model: nn.Module, dtype: torch.dtype | None, device: torch.device) -> dict[str, torch.Tensor]:
    """Fake tensors for every parameter, and every buffer that isn't there, by name.

    All floating parameters want gradients.

    Args:
        model: on any device.
        dtype: of floating parameters instead of their own.
        device: where they seem to lie.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        state: dict[str, torch.Tensor] = {
            name: torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
            for name, buffer in model.named_buffers()
            if buffer.is_meta or buffer.device != device
        }
        for name, parameter in model.named_parameters():
            floating = parameter.is_floating_point()
            kind = dtype if dtype is not None and floating else parameter.dtype
            empty = torch.empty(parameter.shape, dtype=kind, device=device)
            state[name] = nn.Parameter(empty, requires_grad=floating)
    return state


def creation_number(node: Any) -> int:
    """When autograd made a node, counted per thread; the leaves' accumulators have the highest number there is.

    `_sequence_nr` is private, and the only way to know what was computed before a block began.
    """
    return cast("int", node._sequence_nr())


def now() -> int:
    """The number that autograd's next node will get, or one below."""
    with torch.enable_grad():
        return creation_number((torch.ones((), requires_grad=True) * 1).grad_fn)


def same_randomness() -> AbstractContextManager[None]:
    """Within it random numbers are drawn; after it the generators are where they were."""
    return cast("AbstractContextManager[None]", cast("Any", torch.random).fork_rng())
