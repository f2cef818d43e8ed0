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
        unit: loss terms of the step.
        broken: whether some rank's gradient is no finite number.
        gradient_norm: root of the sum over ranks of each one's squared norm, normalised.
        residual_norm: the same of what they keep.
    """

    unit: float
    broken: bool
    gradient_norm: float
    residual_norm: float


def told_of(terms: torch.Tensor, work: torch.Tensor, kept: Sequence[torch.Tensor]) -> torch.Tensor:
    """What this rank tells, float64 `[4]`; all ranks' are summed.

    A norm beyond the range of the numbers counts as no finite number, as it does where steps are checked.

    Args:
        terms: this rank's part of the step's loss terms, 0 where their sum is known.
        work: its gradient.
        kept: what it keeps of earlier ones.
    """
    norm = norm_of(work).double()
    squares = [norm_of(one).double().square() for one in kept]
    fine = norm.isfinite()
    return torch.stack(
        [
            terms,
            (~fine).double(),
            torch.where(fine, norm.square(), 0.0),
            torch.stack(squares).sum() if squares else torch.zeros_like(norm),
        ]
    )


def breaks(told: torch.Tensor) -> bool:
    """Whether this rank tells of a gradient that is no finite number; waits for the device."""
    return bool(told[1] > 0)


def agreed_on(summed: torch.Tensor, terms: float | None) -> Agreed:
    """What the sum of all that was told says; `terms` where they were known."""
    told_terms, broken, gradient, residual = heard(summed)
    unit = told_terms if terms is None else terms
    return Agreed(
        unit=unit,
        broken=broken > 0,
        gradient_norm=math.sqrt(gradient) / unit if unit > 0 else 0.0,
        residual_norm=math.sqrt(residual),
    )
