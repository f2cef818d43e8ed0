"""One rank's part of a block without the other ranks: the same work and shapes, wrong numbers. For timing."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from distroml.runtime.parallel.tensor.apply import hook_modules
from distroml.runtime.parallel.tensor.plan import Split, TensorPlan
from distroml.runtime.parallel.tensor.simulate import LoneRank


def part_alone(block: nn.Module, path: str, plan: TensorPlan) -> nn.Module:
    """What rank 0 of `plan` holds and computes of `block`, the module at `path`; its sums are its own parts."""
    ranks = LoneRank(plan.degree)
    splits: dict[str, Split] = {}
    memo: dict[int, Any] = {}
    for name, split in plan.modules.items():
        inside = "" if name == path else name.removeprefix(f"{path}.") if name.startswith(f"{path}.") else None
        if inside is None:
            continue
        splits[inside] = split
        for own, layout in split.parameters.items():
            parameter = block.get_submodule(inside).get_parameter(own)
            local = layout.take(parameter.detach(), ranks.rank, ranks.degree).clone()
            memo[id(parameter)] = nn.Parameter(local, requires_grad=parameter.requires_grad)
    part = copy.deepcopy(block, memo)
    hook_modules(part, splits, ("",), ranks, random=plan.random)
    return part
