"""What ranks tell one another of a bucket, in one small sum, so that all of them do the same with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distroml.runtime.elastic import heard
from distroml.runtime.typed import norm_of


@dataclass(frozen=True, slots=True)
class Agreed:
    """What ranks know of a bucket, the same on all of them.

    Attributes:
        broken: whether some rank's gradient is no finite number.
        gradient_norm: root of the sum over ranks of each one's squared norm, normalised.
        residual_norm: the same of what they keep.
    """

    broken: bool
    gradient_norm: float
    residual_norm: float


def told_of(work: torch.Tensor, kept: Sequence[torch.Tensor]) -> torch.Tensor:
    """What this rank tells, float64 `[3]`; all ranks' are summed.

    A norm beyond the range of the numbers counts as no finite number, as it does where steps are checked.

    Args:
        work: this rank's gradient.
        kept: what it keeps of earlier ones.
    """
    norm = norm_of(work).double()
    squares = [norm_of(one).double().square() for one in kept]
    fine = norm.isfinite()
    return torch.stack(
        [
            (~fine).double(),
            torch.where(fine, norm.square(), 0.0),
            torch.stack(squares).sum() if squares else torch.zeros_like(norm),
        ]
    )


def breaks(told: torch.Tensor) -> bool:
    """Whether this rank tells of a gradient that is no finite number; waits for the device."""
    return bool(told[0] > 0)


def agreed_on(summed: torch.Tensor, unit: float) -> Agreed:
    """What the sum of all that was told says, where there were `unit` loss terms in the step."""
    broken, gradient, residual = heard(summed)
    return Agreed(
        broken=broken > 0,
        gradient_norm=math.sqrt(gradient) / unit if unit > 0 else 0.0,
        residual_norm=math.sqrt(residual),
    )
