"""Optimizers whose ranks exchange something in place of gradients: what a trainer needs to know of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from distroml.planner.compressing import Momenta
from distroml.planner.compression import Spec

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class CompressedOptimizer(Optimizer, ABC):
    """A torch optimizer that goes by what ranks exchanged in place of gradients; `Trainer` sees to the exchange.

    Its groups count the steps made, alike in all of them, so that checkpoints know them.
    """

    def __init__(self, params: Parameters, defaults: dict[str, Any]) -> None:
        super().__init__(cast("Any", params), {**defaults, "made": 0})

    @property
    def made(self) -> int:
        """How many steps were made."""
        return int(self.param_groups[0]["made"])

    @property
    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What it goes by beside the learning rate and the decay."""

    @property
    def description(self) -> str:
        """Its class, its settings and how far it is: ranks whose texts differ would exchange different things."""
        settings = {**self.defaults, **self.settings, "made": self.made}
        return f"{type(self).__qualname__} ({', '.join(f'{name}={value}' for name, value in sorted(settings.items()))})"

    @abstractmethod
    def check(self, scheme: Spec) -> None:
        """Raise `ValueError` where what it exchanges cannot go by that scheme."""

    @abstractmethod
    def schemes(self, scheme: Spec) -> list[tuple[int, Spec]]:
        """How many steps from now on which scheme holds, while it is not, or not yet, `scheme`; 1 is the next."""

    def momenta(self, scheme: Spec) -> Momenta:
        """What a planner has to know of what is exchanged by `scheme`."""
        return Momenta(first=tuple(spec.name for _, spec in self.schemes(scheme) if spec != scheme))

    # Torch overloads it, so that a closure gives back its loss; here there is none to give.
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move by `grad` of each parameter, which is what the ranks' exchange came to."""
        if closure is not None:
            raise ValueError(f"{type(self).__name__} takes no closure: its gradients come from an exchange")
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._move(parameter, parameter.grad, group)
                group["made"] += 1

    @abstractmethod
    def _move(self, parameter: nn.Parameter, told: torch.Tensor, group: dict[str, Any]) -> None: ...


def checked_rate(lr: float) -> float:
    """`lr`; raises `ValueError` where it is no learning rate."""
    if not lr >= 0.0:
        raise ValueError(f"a learning rate is at least 0, not {lr}")
    return lr
