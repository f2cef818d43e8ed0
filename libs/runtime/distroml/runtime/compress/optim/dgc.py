"""Momentum that reaches sparse gradients, however long they waited (deep gradient compression, Lin et al., 2018).

A gradient that waits in a residual misses the momentum that it would have gathered. So momentum goes first: each rank
exchanges its own velocity, residuals gather velocities, and the optimizer after it is SGD without momentum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from distroml.planner.compressing import Momenta
from distroml.planner.compression import Spec
from distroml.runtime.compress.optim.told import CompressedOptimizer, Parameters, checked_rate
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


class DGC(CompressedOptimizer):
    """Deep gradient compression: SGD whose momentum is each rank's own, before Top-K chooses what it tells.

    Goes with the trainer's `compress="topk:RATIO"`. What a rank told loses its momentum (factor masking). Gradients are
    clipped on each rank before its velocity takes them up; for that the exchange waits for the whole backward pass.

    Args:
        params: as of any optimizer.
        lr: learning rate.
        momentum: of each rank's velocity.
        nesterov: whether it is Nesterov's.
        weight_decay: parameters shrink by `lr * weight_decay` at each step.
        clip: largest norm of the mean gradient; a rank's part may have that over the root of the number of ranks
            (section 3.2). None: no clipping.
        warm_up_steps: over which the ratio falls from a fourth of all elements to that of the scheme (section 3.3).

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip: float | None = None,
        warm_up_steps: int = 0,
    ) -> None:
        if clip is not None and not clip > 0.0:
            raise ValueError(f"clip is above 0, or None for no clipping, not {clip}")
        if warm_up_steps < 0:
            raise ValueError(f"a warm-up has 0 or more steps, not {warm_up_steps}")
        self.correction = MomentumCorrection(momentum, nesterov)
        self.clip = clip
        self.warm_up_steps = warm_up_steps
        super().__init__(params, {"lr": checked_rate(lr), "weight_decay": weight_decay})

    @property
    def settings(self) -> dict[str, object]:
        """See `CompressedOptimizer`."""
        rule = self.correction
        return {
            "momentum": rule.momentum, "nesterov": rule.nesterov, "clip": self.clip, "warm_up_steps": self.warm_up_steps
        }  # fmt: skip

    def check(self, scheme: Spec) -> None:
        """See `CompressedOptimizer`. Momentum can be masked only where elements are told whole or not at all."""
        if scheme.kind != "topk" or scheme.payload:
            raise ValueError(
                f"DGC masks the momentum of what was told, and {scheme.name} does not tell single elements whole; pass "
                "compress='topk:0.001' or another ratio, or use torch.optim.SGD"
            )

    def schemes(self, scheme: Spec) -> list[tuple[int, Spec]]:
        """See `CompressedOptimizer`: the ratio falls."""
        ratios = [ratio_at(step, self.warm_up_steps, scheme.ratio) for step in range(1, self.warm_up_steps + 2)]
        ahead = ratios[self.made :]
        changes = [n for n, ratio in enumerate(ahead) if n == 0 or ratio != ahead[n - 1]]
        return [(n + 1, Spec("topk", ratio=ahead[n])) for n in changes]

    def momenta(self, scheme: Spec) -> Momenta:
        """See `CompressedOptimizer`: a float32 velocity, and for a moment a byte that tells which of it was told."""
        return replace(super().momenta(scheme), kept_bytes=4, working_bytes=1, waits=self.clip is not None)

    def factor(self, norm: torch.Tensor, unit: torch.Tensor, world_size: int) -> torch.Tensor | None:
        """By which this rank's gradient is to be shortened: to nothing where it is no finite number anywhere.

        Its step is broken then, and the buckets that are exchanged before the broken one must not take that up.

        Args:
            norm: of its raw gradient.
            unit: raw gradients over normalised ones.
            world_size: ranks that exchange.
        """
        if self.clip is None:
            return None
        shorter = torch.clamp(self.clip / world_size**0.5 / (norm.double() / unit + 1e-6), max=1.0)
        return torch.where(norm.isfinite(), shorter, 0.0)

    def _move(self, parameter: nn.Parameter, told: torch.Tensor, group: dict[str, Any]) -> None:
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(told, alpha=-group["lr"])
