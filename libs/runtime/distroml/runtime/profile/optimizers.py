"""What an optimizer costs, told by one that was made: how many values it keeps for each parameter, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from distroml.planner.training import Optimizer as Kind

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]

# A matrix, since some optimizers take no other parameters.
_SHAPE = (4, 4)


def kind_of(make: MakeOptimizer) -> Kind:
    """The planner's optimizer that keeps as much as this one does after a step; AdamW stands for more than that."""
    parameter = nn.Parameter(torch.ones(_SHAPE))
    made = make([parameter])
    parameter.grad = torch.zeros(_SHAPE)
    made.step()
    kept = sum(
        isinstance(value, torch.Tensor) and value.shape == parameter.shape for value in made.state[parameter].values()
    )
    if kept == 0:
        return "sgd"
    return "momentum" if kept == 1 else "adamw"


def description_of(make: MakeOptimizer) -> str:
    """The optimizer's class and settings: equal texts cost the same."""
    made = make([nn.Parameter(torch.ones(_SHAPE))])
    return f"{type(made).__qualname__} {sorted(made.defaults.items())}"
