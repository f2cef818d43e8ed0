"""Whose gradient was no finite number: found out before sums spread it, told the same way on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from distroml.runtime.elastic import Collectives, hearing
from distroml.runtime.typed import integers


@dataclass(frozen=True, slots=True, order=True)
class NonFinite:
    """A gradient that is no finite number: on which rank of the world, of which parameter, in which step."""

    rank: int
    parameter: str
    step: int

    def __str__(self) -> str:
        return f"rank {self.rank} has a gradient of {self.parameter} that is no finite number in step {self.step}"


def found_among(
    group: dist.ProcessGroup | None, names: Sequence[str], suspect: str, step: int, device: torch.device
) -> tuple[NonFinite, ...]:
    """Whose gradient in one bucket it was, on every rank of `group`. Collective; raises `PeerLost`.

    Args:
        group: the ranks that exchange the bucket; None: this one alone.
        names: of the bucket's parameters.
        suspect: this rank's among them, empty where it has none.
        step: of training.
        device: of the gradients.
    """
    place = names.index(suspect) if suspect else -1
    places = torch.full((1 if group is None else group.size(),), place, dtype=torch.int64, device=device)
    with hearing():
        if group is not None:
            dist.all_gather_into_tensor(places, places[:1].clone(), group=group)
        told = integers(places)
    return tuple(NonFinite(_in_world(group, rank), names[at], step) for rank, at in enumerate(told) if at >= 0)


def _in_world(group: dist.ProcessGroup | None, rank: int) -> int:
    if group is None:
        return dist.get_rank() if dist.is_initialized() else 0
    return dist.get_global_rank(group, rank)


def blame(found: Sequence[NonFinite], collectives: Collectives) -> str:
    """What any rank found, on every rank, each once: what one group of ranks knows others may not. Collective.

    Raises:
        PeerLost: another rank is gone.
    """
    everything: Iterable[Sequence[NonFinite]] = collectives.gather(tuple(found))
    return "".join(f"; {one}" for one in sorted({one for some in everything for one in some}))
