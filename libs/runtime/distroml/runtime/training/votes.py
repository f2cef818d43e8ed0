"""The small vector that ranks sum every step: the loss, and what each wants the others to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

import torch


class Wish(IntFlag):
    """What a rank asks for at the end of a step; a wish of one is the decision of all."""

    NONE = 0
    # Leave this generation after the step.
    DRAIN = 1
    # End after the step; save first.
    STOP_WITH_CHECKPOINT = 2
    # End after the step without saving.
    STOP = 4
    # A save is still being written here: do not begin another.
    BUSY = 8


_WISHES = tuple(wish for wish in Wish if wish)
HEAD = 2 + len(_WISHES)


@dataclass(frozen=True, slots=True)
class Tally:
    """The votes of all ranks."""

    loss_sum: float
    count: float
    wishes: Wish
    used: tuple[bool, ...]


def ballot(
    loss_sum: torch.Tensor, count: torch.Tensor, wishes: Wish, fired: Sequence[bool], device: torch.device
) -> torch.Tensor:
    """One rank's vector."""
    tail = torch.tensor(
        [float(bool(wishes & wish)) for wish in _WISHES] + [float(reached) for reached in fired],
        dtype=torch.float64,
    ).to(device, non_blocking=True)
    return torch.cat([loss_sum.reshape(1), count.reshape(1), tail])


def tally(values: Sequence[float]) -> Tally:
    """The sum of all vectors, read."""
    wishes = Wish.NONE
    for wish, votes in zip(_WISHES, values[2:HEAD], strict=True):
        if votes:
            wishes |= wish
    return Tally(values[0], values[1], wishes, tuple(votes > 0 for votes in values[HEAD:]))
