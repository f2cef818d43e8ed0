"""Momentum that reaches sparse gradients, however long they waited (deep gradient compression, Lin et al., 2018).

A gradient that waits in a residual misses the momentum that it would have gathered. So momentum goes first: each rank
exchanges its own velocity, residuals gather velocities, and the optimizer after it is SGD without momentum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distroml.runtime.compress.scheme import State

_FIRST_RATIO = 0.25


@dataclass(frozen=True, slots=True)
class MomentumCorrection:
    """Momentum `momentum`, for schemes that tell single elements whole, such as "topk:0.001"; Nesterov's if asked.

    A rank's velocity is a float32 buffer like its gradients', normalised like a residual, and zero at first.
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum is at least 0 and below 1, not {self.momentum}")

    def before(self, flat: torch.Tensor, velocity: torch.Tensor, unit: float) -> None:
        """Before the exchange: `flat`, raw gradients, becomes what to exchange in its place."""
        velocity.mul_(self.momentum).add_(flat, alpha=1.0 / unit)
        if self.nesterov:
            flat.add_(velocity, alpha=unit * self.momentum)
        else:
            torch.mul(velocity, unit, out=flat)

    def after(self, velocity: torch.Tensor, state: State) -> None:
        """After it: what was told loses its momentum, or that would push on in an old direction (factor masking)."""
        if state.residual is None:
            raise ValueError("momentum correction goes with a scheme that keeps residuals, such as topk:0.001")
        velocity.masked_fill_(state.residual == 0, 0.0)


def ratio_at(step: int, warm_up_steps: int, ratio: float) -> float:
    """The share of elements to tell at `step`, from 1: a fourth of the last one with each quarter of the warm-up.

    25 %, 6.25 %, 1.6 %, 0.4 %, then `ratio`; never below `ratio` (section 3.3).
    """
    if step > warm_up_steps:
        return ratio
    stage = (step - 1) * 4 // warm_up_steps
    return max(ratio, _FIRST_RATIO ** (stage + 1))
