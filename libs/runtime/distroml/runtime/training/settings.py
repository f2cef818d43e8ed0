"""What a `Trainer` was asked to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distroml.runtime.data import DataLoader
from distroml.runtime.parallel import Compression, LossFunction, Plan, PlanRefused, Precision
from distroml.runtime.training.types import Callback

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The arguments of `Trainer`, checked; see there for their meaning."""

    optimizer: MakeOptimizer
    loss: LossFunction[Any]
    data: DataLoader[Any]
    total_steps: int
    lr_scheduler: MakeScheduler | None
    checkpoint_every: int | None
    checkpoint_dir: str | os.PathLike[str] | None
    eval_data: DataLoader[Any] | None
    eval_every: int | None
    grad_clip: float | None
    plan: str | Plan | None
    compression: Compression
    precision: Precision
    compiled: bool
    seed: int
    callbacks: Sequence[Callback]
    non_finite: Literal["fail", "ignore"]
    without_checkpoint: Literal["restart", "fail"]
    log_every_s: float

    def __post_init__(self) -> None:
        for name in ("total_steps", "checkpoint_every", "eval_every", "grad_clip"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if self.eval_every is not None and self.eval_data is None:
            raise ValueError("eval_every is set, but there is no eval_data to evaluate on")
        if self.non_finite not in ("fail", "ignore"):
            raise ValueError(f"non_finite must be 'fail' or 'ignore', got {self.non_finite!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be 'fp32' or 'bf16', got {self.precision!r}")
        if self.without_checkpoint not in ("restart", "fail"):
            raise ValueError(f"without_checkpoint must be 'restart' or 'fail', got {self.without_checkpoint!r}")


def total_steps_of(data: DataLoader[Any], steps: int | None, epochs: int | None) -> int:
    """The number of optimizer steps of the whole training; raises `ValueError` unless exactly one is given."""
    if (steps is None) == (epochs is None):
        raise ValueError("give Trainer either steps= or epochs=, not both and not neither")
    return steps if steps is not None else (epochs or 0) * data.steps_per_epoch


def parameter_count(module: nn.Module) -> int:
    """Number of elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def check_last_step(plan: Plan, data: DataLoader[Any]) -> None:
    """Refuse a smaller last step of an epoch that a plan cannot share out evenly; raises `PlanRefused`."""
    rest = data.size % data.global_batch
    if rest and not data.drop_last and plan.world_size > plan.dp_replicate:
        piece = plan.dp * (plan.microbatch or rest)
        if rest % plan.dp or rest % piece:
            raise PlanRefused(
                f"the last step of an epoch has {rest} samples, which the plan {plan} cannot share out evenly; pass "
                "drop_last=True to DataLoader, or a plan that only replicates"
            )


def fresh_optimizer(settings: Settings, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """A new optimizer over these parameters; raises `TypeError` where it is none."""
    made = settings.optimizer(parameters)
    if not isinstance(made, torch.optim.Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"optimizer= must be a function from parameters to an optimizer; it gave {type(made).__name__}")
    return made
