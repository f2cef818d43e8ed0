"""A model that computes like the whole one and holds one block's weights for all blocks of a shape: for timing."""

from __future__ import annotations

import torch
from torch import nn

from distroml.planner import ModelProfile
from distroml.runtime.parallel.pipeline.fakes import hollow_copy
from distroml.runtime.parallel.weights import WeightSource, materialise


def lean_copy(blank: nn.Module, profile: ModelProfile, weights: WeightSource, device: torch.device) -> nn.Module:
    """`blank` with memory, as little as can be: what is outside of blocks, and the first block of each shape.

    The other blocks' parameters are the first one's. The same operations on the same sizes take the same time, while
    a rank that could not hold the whole model can be asked what it costs.

    Args:
        blank: the whole model, on `meta`; is not changed.
        profile: of it.
        weights: its values.
        device: where it shall run.
    """
    lean = hollow_copy(blank)
    first: dict[str, nn.Module] = {}
    borrowed: list[tuple[nn.Module, str, nn.Module]] = []
    for unit in profile.blocks:
        block = lean.get_submodule(unit.name)
        lender = first.setdefault(unit.shape, block)
        if lender is block:
            continue
        for own, other in zip(block.modules(), lender.modules(), strict=True):
            for name in [name for name, _ in own.named_parameters(recurse=False)]:
                borrowed.append((own, name, other))
                delattr(own, name)
    materialise(lean, weights, device=device)
    for own, name, other in borrowed:
        own.register_parameter(name, other.get_parameter(name))
    return lean
