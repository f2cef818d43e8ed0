"""A block as one rank has it, without a process group: for proofs, and for timing what tp makes of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from distroml.runtime.parallel.tensor.apply import hook_modules
from distroml.runtime.parallel.tensor.plan import Door, Split, Stretches, TensorPlan, inside
from distroml.runtime.parallel.tensor.simulate import LoneRank
from distroml.runtime.parallel.tensor.sums import Ranks


def part_of(
    block: nn.Module,
    splits: Mapping[str, Split],
    ranks: Ranks,
    *,
    door: Door | None = None,
    random: bool = False,
    shared: Iterable[nn.Parameter] = (),
) -> nn.Module:
    """A copy of `block` with the rank's own part of what is split.

    Args:
        block: the whole one; is not changed.
        splits: by path within the block.
        ranks: as the rank sees them.
        door: where hidden states come in and go out that are divided along the sequence.
        random: the rank draws its own random numbers in regions.
        shared: parameters that the copy has in common with the block, where they are whole.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in shared}
    for path, split in splits.items():
        for name, layout in split.parameters.items():
            parameter = block.get_submodule(path).get_parameter(name)
            local = layout.take(parameter.detach(), ranks.rank, ranks.degree)
            memo[id(parameter)] = nn.Parameter(local, requires_grad=parameter.requires_grad)
    part = copy.deepcopy(block, memo)
    sequence = () if door is None else (Stretches(blocks=("",), door=door),)
    hook_modules(part, splits, ("",), ranks, random=random, sequence=sequence)
    return part


def part_alone(block: nn.Module, path: str, plan: TensorPlan) -> nn.Module:
    """What rank 0 of `plan` holds and computes of `block`, the module at `path`; its sums are its own parts.

    The same work and shapes, wrong numbers. What is not split is the block's own.
    """
    splits = inside(plan.modules, path)
    return part_of(block, splits, LoneRank(plan.degree), random=plan.random, shared=block.parameters())
