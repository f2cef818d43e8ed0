"""What the trainer takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from distroml.runtime.parallel import Batch, LossFunction


class NonFiniteError(Exception):
    """A loss or gradient is no finite number; where it can be told in time, the optimizer did not step."""


class CheckpointsExhausted(Exception):
    """Every checkpoint of the job is damaged, and starting again from step 0 is not wanted or not possible."""


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One optimizer step, equal on every rank but for the seconds.

    `loss` is the global sum over `count` terms; `grad_norm` is that of the normalised gradient before clipping.
    Places `[sample_from, sample_to)` of the epoch's global order were consumed.
    """

    step: int
    epoch: int
    sample_from: int
    sample_to: int
    loss: float
    grad_norm: float
    count: int
    learning_rate: float
    step_s: float
    data_wait_s: float
    comm_wait_s: float

    @property
    def samples(self) -> int:
        """Samples of the step, over all ranks."""
        return self.sample_to - self.sample_from


Callback = Callable[[StepInfo], None]


@dataclass(frozen=True, slots=True)
class FitResult:
    """How a training ended. `loss` is the last step's, None where no step was left to make.

    `committed_step` is below `step` where the last save did not become a checkpoint. It is what this rank knows:
    without an agent, ranks other than 0 are told of none that were made in this run.
    """

    step: int
    loss: float | None
    eval: dict[str, float] | None
    rank: int
    world_size: int
    generation: int
    restored_step: int | None
    committed_step: int | None
    fingerprint: str


def from_mean(mean_loss: Callable[[nn.Module, Batch], torch.Tensor]) -> LossFunction[Batch]:
    """Make a loss function of one that returns the mean over the samples of its batch.

    The number of samples is the first dimension of the batch's first tensor.
    """

    def summed(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int | torch.Tensor]:
        size = _samples_of(batch)
        return mean_loss(model, batch) * size, size

    return summed


def _samples_of(batch: object) -> int:
    if isinstance(batch, torch.Tensor):
        return batch.shape[0]
    parts: list[object] = []
    if isinstance(batch, dict):
        parts = list(cast("dict[object, object]", batch).values())
    elif isinstance(batch, list | tuple):
        parts = list(cast("list[object]", batch))
    if not parts:
        raise TypeError(
            f"from_mean finds no tensor in a batch of type {type(cast('object', batch)).__name__}; return (sum, count)"
        )
    return _samples_of(parts[0])
