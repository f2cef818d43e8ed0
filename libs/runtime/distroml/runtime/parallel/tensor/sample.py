"""One block alone, with small random weights in double precision, to try things on."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.tensor.calls import BlockCall


@dataclass(frozen=True, slots=True)
class AloneBlock:
    """A real copy of a block and arguments for it; `flowing` are those among them that want a gradient."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    flowing: list[torch.Tensor]


def random_block(block: nn.Module, call: BlockCall) -> AloneBlock:
    """A copy of `block` with random weights, whatever device it is on, and `call`'s arguments; always the same."""
    generator = torch.Generator().manual_seed(1)
    memo: dict[int, Any] = {}
    for parameter in block.parameters():
        made = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() > 1:
            made /= parameter.shape[-1] ** 0.5
        memo[id(parameter)] = nn.Parameter(made)
    for buffer in block.buffers():
        memo[id(buffer)] = torch.zeros(buffer.shape, dtype=buffer.dtype) if buffer.is_meta else buffer.detach().clone()
    module = copy.deepcopy(block, memo).train()
    for inner in module.modules():
        # Masks would differ from one try to the next.
        if isinstance(inner, nn.Dropout):
            inner.p = 0.0
    leaves, shape = trees.flatten((call.args, call.kwargs))
    given = {place: _double(leaf, place in call.flowing) for place, leaf in leaves.items()}
    args, kwargs = trees.build(list(given.values()), shape)
    return AloneBlock(module, args, kwargs, [given[place] for place in leaves if place in call.flowing])


def _double(leaf: Any, flows: bool) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    made = leaf.detach().clone()
    return made.double().requires_grad_(flows) if made.is_floating_point() else made
