"""Ranks that step by themselves and meet every H steps: local SGD (Stich, 2019) with DiLoCo's outer optimizer.

What they exchange is how far each came, as a gradient, by any scheme; an outer Nesterov momentum moves all of them on
(Douillard et al., 2023). After a meeting parameters are the same to the bit on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class OuterState:
    """Of one flat buffer of parameters, equal on every rank.

    Attributes:
        anchor: the parameters of the last meeting.
        velocity: of the outer momentum.
    """

    anchor: torch.Tensor
    velocity: torch.Tensor

    @classmethod
    def at(cls, parameters: torch.Tensor) -> OuterState:
        """At the beginning, where `parameters` are equal on every rank."""
        return cls(parameters.clone(), torch.zeros_like(parameters))


@dataclass(frozen=True, slots=True)
class OuterNesterov:
    """Meets every `every` steps; `lr` and `momentum` are of the outer step, DiLoCo's by default.

    With a rate of 1 and no momentum a meeting is the plain mean of all ranks' parameters (local SGD). A meeting is
    `difference`, its exchange with a `unit` of the world's size, then `meet`.
    """

    every: int
    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"ranks meet every 1 or more steps, not every {self.every}")
        if not self.lr > 0.0:
            raise ValueError(f"the outer learning rate is above 0, not {self.lr}")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"outer momentum is at least 0 and below 1, not {self.momentum}")

    def due(self, step: int) -> bool:
        """Whether ranks meet after `step`, from 1."""
        return step % self.every == 0

    def difference(self, parameters: torch.Tensor, state: OuterState, out: torch.Tensor | None = None) -> torch.Tensor:
        """How far this rank came since the last meeting, with the sign of a gradient; `out` may be `parameters`."""
        return torch.sub(state.anchor, parameters, out=out)

    def meet(self, summed: torch.Tensor, parameters: torch.Tensor, state: OuterState, world_size: int) -> None:
        """Set `parameters` from the sum of all ranks' differences; `state` is one meeting further."""
        mean = summed / world_size
        state.velocity.mul_(self.momentum).add_(mean)
        state.anchor.add_(mean.add_(state.velocity, alpha=self.momentum), alpha=-self.lr)
        parameters.copy_(state.anchor)

    def velocity_after(self, parameters: torch.Tensor, state: OuterState) -> torch.Tensor:
        """The velocity after a meeting that began with `state` and made these `parameters`."""
        moved = (state.anchor - parameters).div_(self.lr)
        mean = moved.sub_(state.velocity, alpha=self.momentum**2).div_(1.0 + self.momentum)
        return mean.add_(state.velocity, alpha=self.momentum)
