"""What an optimizer costs, told by one that was made: how many values it keeps for each parameter, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from distroml.planner import Momenta
from distroml.planner.compression import AUTO, parse_spec, read_wish
from distroml.planner.training import Optimizer as Kind
from distroml.runtime.compress.optim import CompressedOptimizer

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


def momenta_of(make: MakeOptimizer, compress: str) -> Momenta | None:
    """What the optimizer has exchanged in place of gradients, by the scheme of `compress`; None: gradients are.

    Raises `ValueError` where it cannot be exchanged so; says what can.
    """
    made = make([nn.Parameter(torch.ones(_SHAPE))])
    # Such an optimizer refuses `auto` where it is taken up.
    if not isinstance(made, CompressedOptimizer) or read_wish(compress) == AUTO:
        return None
    scheme = parse_spec(compress)
    made.check(scheme)
    return made.momenta(scheme)


def description_of(make: MakeOptimizer) -> str:
    """The optimizer's class and settings: equal texts cost the same."""
    made = make([nn.Parameter(torch.ones(_SHAPE))])
    if isinstance(made, CompressedOptimizer):
        return made.description
    return f"{type(made).__qualname__} {sorted(made.defaults.items())}"
