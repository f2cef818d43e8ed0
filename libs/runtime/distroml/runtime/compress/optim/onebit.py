"""1-bit Adam (Tang et al., 2021): after a warm-up the variance is frozen, and momentum is exchanged, not gradients.

Adam is not linear in gradients, so error feedback does not fit it; with a frozen variance it is linear in momentum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distroml.planner.compression import Spec
from distroml.runtime.compress.optim.told import CompressedOptimizer, Parameters, checked_rate
from distroml.runtime.compress.scheme import Turn


@dataclass(slots=True)
class AdamState:
    """Of one tensor, equal on every rank; normalised.

    Attributes:
        mean: running mean of gradients.
        square: running mean of their squares; no longer changed after the warm-up.
        step: how many were made.
    """

    mean: torch.Tensor
    square: torch.Tensor
    step: int = 0

    @classmethod
    def like(cls, flat: torch.Tensor) -> AdamState:
        """Before the first step."""
        return cls(torch.zeros_like(flat), torch.zeros_like(flat))


@dataclass(frozen=True, slots=True)
class FrozenVariance:
    """The rule of 1-bit Adam, for tensors of any shape: an Adam whose exchanges may be lossy after `warm_up_steps`.

    Those before are to be plain sums. A step is `before`, the exchange, then `direction`; the new parameters are the
    old ones less the learning rate times the direction.
    """

    warm_up_steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.warm_up_steps < 1:
            raise ValueError(f"the variance needs a warm-up of 1 step or more, not {self.warm_up_steps}")

    @property
    def longest(self) -> float:
        """Of a mean of gradients over the root of a mean of their squares, whatever the gradients (Cauchy-Schwarz)."""
        beta, beta_of_squares = self.betas
        if beta**2 >= beta_of_squares:
            return math.inf  # squares are forgotten before what they are of
        return (1.0 - beta) / math.sqrt((1.0 - beta_of_squares) * (1.0 - beta**2 / beta_of_squares))

    def lossy(self, state: AdamState) -> bool:
        """Whether the next exchange may be lossy."""
        return state.step >= self.warm_up_steps

    def before(self, flat: torch.Tensor, state: AdamState, turn: Turn) -> None:
        """After the warm-up, `flat`, raw gradients, becomes this rank's share of the next momentum."""
        if self.lossy(state):
            beta = self.betas[0]
            flat.mul_(1.0 - beta).add_(state.mean, alpha=beta * turn.unit / turn.world_size)

    def direction(self, flat: torch.Tensor, state: AdamState, unit: float) -> torch.Tensor:
        """Where to go, from the exchanged `flat`; `state` is one step further.

        Elements whose gradients were all zero in the warm-up, padding among them, stay where they are: over their
        variance of 0 the errors of a code would be steps without bound. Over a variance that is merely small they are
        steps a million times too long, so that after the warm-up none is longer than Adam's own could be.
        """
        beta, beta_of_squares = self.betas
        lossy = self.lossy(state)
        if lossy:
            torch.div(flat, unit, out=state.mean)
        else:
            gradient = flat / unit
            state.mean.lerp_(gradient, 1.0 - beta)
            state.square.mul_(beta_of_squares).addcmul_(gradient, gradient, value=1.0 - beta_of_squares)
        state.step += 1
        # Bias is corrected by the steps that each mean has seen.
        seen = min(state.step, self.warm_up_steps)
        spread = (state.square / (1.0 - beta_of_squares**seen)).sqrt_().add_(self.eps)
        direction = state.mean / (1.0 - beta**state.step) / spread
        if lossy:
            direction.clamp_(-self.longest, self.longest)
        return direction.masked_fill_(state.square == 0, 0.0)


class OneBitAdam(CompressedOptimizer):
    """1-bit Adam with decoupled weight decay: after a warm-up ranks exchange momentum, over a frozen variance.

    During the warm-up it is AdamW, and its gradients are summed plainly. Then each rank's share of the next momentum
    goes by the trainer's `compress=`, "sign" in the paper, with residuals. An element whose gradients were all zero in
    the warm-up never moves again, so the warm-up has to see every parameter; the paper takes 15-25 % of all steps, and
    at least as many as the learning rate warms up.

    Args:
        params: as of any optimizer.
        lr: learning rate.
        betas: of the running means of gradients and of their squares.
        eps: added to the root of the latter.
        weight_decay: parameters shrink by `lr * weight_decay` at each step.
        warm_up_steps: after which the variance is frozen.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        *,
        warm_up_steps: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.rule = FrozenVariance(warm_up_steps, betas, eps)
        super().__init__(params, {"lr": checked_rate(lr), "weight_decay": weight_decay})

    @property
    def settings(self) -> dict[str, object]:
        """See `CompressedOptimizer`."""
        return {"warm_up_steps": self.rule.warm_up_steps, "betas": self.rule.betas, "eps": self.rule.eps}

    def check(self, scheme: Spec) -> None:
        """See `CompressedOptimizer`. Every lossy scheme will do."""
        if scheme.kind == "none":
            raise ValueError(
                "OneBitAdam exchanges momentum by a lossy scheme after its warm-up, and none is set; pass "
                "compress='sign', or use torch.optim.AdamW"
            )

    def schemes(self, scheme: Spec) -> list[tuple[int, Spec]]:
        """See `CompressedOptimizer`: plain sums until the warm-up is over."""
        left = self.rule.warm_up_steps - self.made
        return [(1, Spec("none")), (left + 1, scheme)] if left > 0 else []

    def share(self, parameter: nn.Parameter, part: torch.Tensor, turn: Turn) -> None:
        """`part`, this rank's raw gradient of a parameter, becomes what to exchange in its place."""
        if self.made < self.rule.warm_up_steps:
            return
        held = self.state.get(parameter)
        mean = held["exp_avg"].reshape(part.shape) if held else torch.zeros_like(part)
        # The squares have no part in it.
        self.rule.before(part, AdamState(mean, mean, self.made), turn)

    def _move(self, parameter: nn.Parameter, told: torch.Tensor, group: dict[str, Any]) -> None:
        held = self.state[parameter]
        if not held:
            held["exp_avg"], held["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state = AdamState(held["exp_avg"], held["exp_avg_sq"], group["made"])
        direction = self.rule.direction(told, state, 1.0)
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
