"""One process, plain PyTorch: the losses and parameters that every plan must reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from tests.numerics.zoo import Architecture, Batch, loss

OptimizerName = Literal["sgd", "adamw"]

STEPS = 10
GLOBAL_BATCH = 8
SEED = 7
# Elements whose gradient never exceeds this share of the largest gradient have a true gradient of zero (key biases):
# AdamW turns their rounding noise into whole steps.
_ZERO_SHARE = 1e-13


def make_optimizer(
    name: OptimizerName, parameters: Iterator[nn.Parameter] | list[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizers that plans are compared under."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


def seeded(architecture: Architecture, dtype: torch.dtype) -> Callable[[], nn.Module]:
    """The factory of the model in `dtype`."""

    def make() -> nn.Module:
        return architecture.make().to(dtype)

    return make


def samples_of_step(architecture: Architecture, step: int) -> Batch:
    """The global batch of one step."""
    return architecture.batch(GLOBAL_BATCH, seed=1000 + step)


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """Samples `[start, stop)`."""
    return {name: value[start:stop] for name, value in batch.items()}


@dataclass(frozen=True, slots=True)
class Reference:
    """What one process computes.

    Attributes:
        losses: mean loss before each step.
        norms: gradient norm of each step, before clipping.
        parameters: by name, after the last step.
        zero: for each parameter that has some, the elements whose true gradient is zero.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    zero: dict[str, torch.Tensor] = field(default_factory=dict)


def train_alone(
    model: nn.Module,
    architecture: Architecture,
    optimizer: OptimizerName,
    *,
    microbatch: int,
    grad_clip: float | None = None,
    steps: int = STEPS,
) -> Reference:
    """Train `model` in this process, accumulating microbatches of `microbatch` samples."""
    stepping = make_optimizer(optimizer, list(model.parameters()))
    found = Reference()
    largest: dict[str, torch.Tensor] = {}
    for step in range(1, steps + 1):
        whole = samples_of_step(architecture, step)
        stepping.zero_grad()
        total, count = torch.zeros((), dtype=torch.float64), 0
        for start in range(0, GLOBAL_BATCH, microbatch):
            one, terms = loss(model, part_of(whole, start, start + microbatch))
            one.backward()
            total, count = total + one.detach().double(), count + terms
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= count
        found.losses.append(float(total) / count)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip if grad_clip is not None else float("inf"))
        found.norms.append(float(norm))
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                size = parameter.grad.abs()
                largest[name] = torch.maximum(largest[name], size) if name in largest else size.clone()
        stepping.step()
    found.parameters.update({name: p.detach().clone() for name, p in model.named_parameters()})
    top = max(float(size.max()) for size in largest.values())
    for name, size in largest.items():
        noise = (size > 0) & (size <= _ZERO_SHARE * top)
        if bool(noise.any()):
            found.zero[name] = noise
    return found
