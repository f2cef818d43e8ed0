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
from distroml.runtime.parallel import Plan
from distroml.runtime.training.types import Callback, LossFunction

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
    plan: str | Plan
    compress: str
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
        if self.without_checkpoint not in ("restart", "fail"):
            raise ValueError(f"without_checkpoint must be 'restart' or 'fail', got {self.without_checkpoint!r}")


def total_steps_of(data: DataLoader[Any], steps: int | None, epochs: int | None) -> int:
    """The number of optimizer steps of the whole training; raises `ValueError` unless exactly one is given."""
    if (steps is None) == (epochs is None):
        raise ValueError("give Trainer either steps= or epochs=, not both and not neither")
    return steps if steps is not None else (epochs or 0) * data.steps_per_epoch


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimizer gets, in the model's order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def parameter_count(module: nn.Module) -> int:
    """Number of elements of all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def fresh_optimizer(settings: Settings, module: nn.Module) -> Optimizer:
    """A new optimizer over the module's trainable parameters; raises `TypeError` where it is none."""
    made = settings.optimizer(trainable(module))
    if not isinstance(made, torch.optim.Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"optimizer= must be a function from parameters to an optimizer; it gave {type(made).__name__}")
    return made
