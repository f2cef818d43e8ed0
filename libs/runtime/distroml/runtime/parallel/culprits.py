"""Whose gradient was no finite number: found out before sums spread it, told the same way on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distroml.runtime.elastic import Collectives


@dataclass(frozen=True, slots=True, order=True)
class NonFinite:
    """A gradient that is no finite number: on which rank of the world, of which parameter, in which step."""

    rank: int
    parameter: str
    step: int

    def __str__(self) -> str:
        return f"rank {self.rank} has a gradient of {self.parameter} that is no finite number in step {self.step}"


def blame(found: Sequence[NonFinite], collectives: Collectives) -> str:
    """What any rank found, on every rank, each once: what one group of ranks knows others may not. Collective.

    Raises:
        PeerLost: another rank is gone.
    """
    everything: Iterable[Sequence[NonFinite]] = collectives.gather(tuple(found))
    return "".join(f"; {one}" for one in sorted({one for some in everything for one in some}))
