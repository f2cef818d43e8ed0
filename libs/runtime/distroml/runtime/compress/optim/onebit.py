"""1-bit Adam (Tang et al., 2021): after a warm-up the variance is frozen, and momentum is exchanged, not gradients.

Adam is not linear in gradients, so error feedback does not fit it; with a frozen variance it is linear in momentum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distroml.runtime.compress.scheme import Turn


@dataclass(slots=True)
class AdamState:
    """Of one flat buffer, equal on every rank; normalised.

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
class OneBitAdam:
    """Adam whose exchanges may be lossy after `warm_up_steps`; those before are to be plain sums.

    A step is `before`, the exchange of the buffer, then `direction`; the new parameters are the old ones less the
    learning rate times the direction.
    """

    warm_up_steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.warm_up_steps < 1:
            raise ValueError(f"the variance needs a warm-up of 1 step or more, not {self.warm_up_steps}")

    def lossy(self, state: AdamState) -> bool:
        """Whether the next exchange may be lossy."""
        return state.step >= self.warm_up_steps

    def before(self, flat: torch.Tensor, state: AdamState, turn: Turn) -> None:
        """After the warm-up, `flat`, raw gradients, becomes this rank's share of the next momentum."""
        if self.lossy(state):
            beta = self.betas[0]
            flat.mul_(1.0 - beta).add_(state.mean, alpha=beta * turn.unit / turn.world_size)

    def direction(self, flat: torch.Tensor, state: AdamState, turn: Turn) -> torch.Tensor:
        """Where to go, from the exchanged `flat`; `state` is one step further.

        Elements whose gradients were all zero in the warm-up, padding among them, stay where they are: over their
        variance of 0 the errors of a code would be steps without bound.
        """
        beta, beta_of_squares = self.betas
        if self.lossy(state):
            torch.div(flat, turn.unit, out=state.mean)
        else:
            gradient = flat / turn.unit
            state.mean.lerp_(gradient, 1.0 - beta)
            state.square.mul_(beta_of_squares).addcmul_(gradient, gradient, value=1.0 - beta_of_squares)
        state.step += 1
        # Bias is corrected by the steps that each mean has seen.
        seen = min(state.step, self.warm_up_steps)
        spread = (state.square / (1.0 - beta_of_squares**seen)).sqrt_().add_(self.eps)
        direction = state.mean / (1.0 - beta**state.step) / spread
        return direction.masked_fill_(state.square == 0, 0.0)
