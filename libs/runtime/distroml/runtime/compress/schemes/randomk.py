"""Random-K: every rank tells the same elements, which a common seed draws anew in each step.

Choices are equal, so values are summed as they are and no index travels (Konečný et al., 2016; Stich et al., 2018).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from distroml.planner.compression import share_of
from distroml.runtime.comm import sent_bytes
from distroml.runtime.compress.codec import Codec
from distroml.runtime.compress.layout import Layout
from distroml.runtime.compress.scheme import Round, State, Turn
from distroml.runtime.compress.schemes.exchange import Section, exchange, exchange_bytes, part_of
from distroml.runtime.compress.schemes.kept import deliver, gather_up
from distroml.runtime.compress.schemes.seeds import hashed, seed_of


def chosen(numel: int, count: int, seed: int, device: torch.device) -> torch.Tensor:
    """`count` different places below `numel`, ascending: one at random of each of `count` equal stretches.

    Every element has the same chance up to `count / numel`, as in a draw from all, at the cost of `count` only.
    """
    ends = torch.arange(count + 1, dtype=torch.int64, device=device) * numel // count
    return ends[:-1] + (hashed(count, seed, device) * ends.diff() >> 32)


@dataclass(frozen=True, slots=True)
class RandomK:
    """`ratio` of the elements, at least one, with error feedback; values as float32 or as `values` says."""

    ratio: float
    values: Codec | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.ratio <= 1.0:
            raise ValueError(f"random-K tells a share of the elements above 0 and up to 1, not {self.ratio}")

    @property
    def name(self) -> str:
        """See `Scheme`."""
        return f"randomk:{self.ratio!r}" + ("" if self.values is None else f"+{self.values.name}")

    def count(self, numel: int) -> int:
        """How many of `numel` elements are told: `ratio` of them as it is written in decimals, rounded up."""
        return share_of(self.ratio, numel)

    def prepare(self, layout: Layout, world_size: int, device: torch.device) -> State:
        """See `Scheme`."""
        return State(torch.zeros(layout.numel, device=device))

    def rounds(self, flat: torch.Tensor, layout: Layout, state: State, turn: Turn) -> Generator[Round, torch.Tensor]:
        """See `Scheme`. A world of one loses nothing, and is told all that was kept."""
        if turn.world_size == 1 or flat.numel() == 0:
            deliver(flat, state, turn)
            return
        residual = gather_up(flat, state, turn)
        where = chosen(flat.numel(), self.count(flat.numel()), seed_of(turn), flat.device)
        values = residual[where]
        lost = torch.zeros_like(values)
        if self.values is None:
            values.copy_((yield Round("sum", values)))
        else:
            part = part_of(values.numel(), turn.world_size, turn.rank)
            owned = torch.zeros_like(values[part])
            yield from exchange([Section(self.values, values, lost, owned)], turn)
            # The next step tells other elements: what an owner lost goes to its own residual.
            lost[part].add_(owned)
        residual[where] = lost
        flat.zero_()
        flat[where] = values.mul_(turn.unit)

    def takes_back(self, layout: Layout, world_size: int) -> bool:
        """See `Scheme`."""
        return False

    def sent_bytes(self, layout: Layout, world_size: int) -> int:
        """See `Scheme`."""
        count = self.count(layout.numel)
        if self.values is None:
            return sent_bytes("sum", 4 * count, world_size)
        return exchange_bytes([(self.values, count)], world_size)
