"""Steps that replicas make by themselves: what each goes by, and each one's own optimizer state in checkpoints.

Between meetings a replica is a training of its own: it divides its gradient by its own count of loss terms, clips by
its own norm, and its optimizer has moments of its own. Those are never averaged: a checkpoint has rank 0's where it has
any optimizer's, for worlds of another size, and every rank's own beside it, with which the same world goes on exactly.
The same holds for parameters where it is saved between two meetings.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from distroml.runtime.checkpoint import OWN, Whole
from distroml.runtime.checkpoint.whole import clean
from distroml.runtime.parallel import ParallelModel
from distroml.runtime.parallel.gradients import Gradients
from distroml.runtime.parallel.meetings import PARAMETERS

_INNER = "optimizer"


@dataclass(frozen=True, slots=True)
class OwnStep:
    """What a replica's own step goes by.

    Attributes:
        scale: its gradients' factor; 0 where it has no loss term.
        norm: of its normalised gradient.
    """

    scale: torch.Tensor
    norm: torch.Tensor

    @classmethod
    def of(cls, gradients: Gradients, count: torch.Tensor) -> OwnStep:
        """After the backward passes."""
        scale = torch.where(count > 0, 1.0 / count, 0.0)
        return cls(scale, gradients.norm().double() * scale)

    def voted(self, votes: torch.Tensor) -> torch.Tensor:
        """The ballot with this rank's norm, so that all know the root of their mean square."""
        return torch.cat([votes, self.norm.square().reshape(1)])

    @staticmethod
    def counted(votes: torch.Tensor, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed ballot, and the root of the mean square of all norms."""
        return votes[:-1], (votes[-1] / ranks).sqrt()


def separate(state: MutableMapping[str, Any], parallel: ParallelModel, *, main: bool) -> None:
    """Put what only this rank has of a captured state under its own, and what all read in its place. Collective.

    That is rank 0's optimizer state, and between two meetings the model that one would make. Raises `PeerLost`.
    """
    own = state[OWN][parallel.keeping.own_place[1]]
    inner = state["optimizer"].get("state", {})
    own[_INNER] = {name: dict(values) for name, values in inner.items()}
    if not main:
        state["optimizer"].pop("state", None)
    meetings = parallel.meetings
    if meetings is not None and meetings.between:
        held = [(clean(name), parameter) for name, parameter in parallel.part.held if parameter.requires_grad]
        own[PARAMETERS] = {name: parameter.detach() for name, parameter in held}
        folded = meetings.folded(parallel.collectives)
        first = Whole.of(parallel.module).first
        model = state["model"]
        model.update({name: folded[first.get(name, name)] for name in model if first.get(name, name) in folded})


def rejoin(
    optimizer: Optimizer,
    parameters: Sequence[tuple[str, nn.Parameter]],
    loaded: Mapping[str, Any],
    own_place: tuple[str, str],
) -> None:
    """Give the optimizer, which was loaded with rank 0's state, what `separate` put under this rank's own."""
    saved = cast("Mapping[str, Mapping[str, Any]]", loaded[OWN][own_place[1]].get(_INNER) or {})
    for name, parameter in parameters:
        values = saved.get(clean(name))
        if values is None:
            optimizer.state.pop(parameter, None)
        else:
            optimizer.state[parameter] = {key: _placed(value, parameter) for key, value in values.items()}


def _placed(value: Any, parameter: nn.Parameter) -> Any:
    # Counts of steps stay on the CPU, as torch keeps them.
    if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.dim():
        return value.to(parameter.device)
    return value
