"""What each rank of the pool does in tests of codes that leave before ranks agree, beside all ranks in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from distroml.runtime.compress import Layout, Piece, SimulatedRanks
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import World
from distroml.runtime.parallel import CompressedExchange
from distroml.runtime.parallel.buckets import BucketSpec, Segment

CPU = torch.device("cpu")
SEED = 7
# So small that all ranks gather all codes, and no multiple of a code's blocks.
ELEMENTS = 700
TERMS = 3.0


class Beside:
    """An exchange of as many buckets as there are schemes, and the same by all ranks in this process."""

    def __init__(self, world: World, schemes: Sequence[str], *, adapts: bool = False) -> None:
        self.rank, self.ranks, self.buckets = world.rank, world.world_size, range(len(schemes))
        group = dist.new_group()
        self.exchange = CompressedExchange(group, parse_scheme("none"), seed=SEED, device=CPU, adapts=adapts)
        self.exchange.set_timed(False)
        self.specs = [
            BucketSpec(torch.float32, CPU, ELEMENTS, (Segment(f"{number}", number, 0, (ELEMENTS,)),))
            for number in self.buckets
        ]
        self.exchange.prepare(dict(enumerate(self.specs)))
        layout = Layout(ELEMENTS, (Piece("", 0, (ELEMENTS,)),))
        self.right: list[SimulatedRanks] = []
        for number, scheme in enumerate(schemes):
            self.exchange.set_scheme(number, parse_scheme(scheme), 1)
            self.right.append(SimulatedRanks(parse_scheme(scheme), layout, self.ranks, SEED, bucket=number))

    def step(self, number: int, broken: Sequence[int] = ()) -> list[torch.Tensor]:
        """What came out of each bucket; those of `broken` have a NaN on rank 1."""
        flats = [self._gradient(self.rank, bucket, number) for bucket in self.buckets]
        for bucket in broken if self.rank == 1 else ():
            flats[bucket][5] = float("nan")
        self.exchange.open(number)
        self.exchange.announce(torch.tensor(TERMS))
        begun = [self.exchange.begin(*one) for one in zip(self.buckets, self.specs, flats, strict=True)]
        for pending in begun:
            pending.wait()
        return flats

    def gap(self, number: int, flats: Sequence[torch.Tensor]) -> float:
        """Of sums, and of sums with what is kept, to those of one process; relative to the sums, the worst bucket's."""
        gaps: list[float] = []
        for bucket, came in enumerate(flats):
            right = self.right[bucket]
            right.step = number - 1
            everyones = [self._gradient(rank, bucket, number) for rank in range(self.ranks)]
            right.exchange(everyones, TERMS * self.ranks)
            gaps.append(float((came - everyones[0]).norm() / everyones[0].norm()))
            wanted, kept = right.states[self.rank].residual, self.exchange.buffers[bucket].state.residual
            assert (wanted is None) == (kept is None)
            if wanted is not None and kept is not None:
                gaps.append(float((kept - wanted).norm() * right.world_size * TERMS / everyones[0].norm()))
        return max(gaps)

    @staticmethod
    def _gradient(rank: int, bucket: int, number: int) -> torch.Tensor:
        made = torch.Generator().manual_seed(1000 * number + 10 * bucket + rank)
        return torch.randn(ELEMENTS, generator=made)


def taken_back(world: World, scheme: str) -> dict[str, Any]:
    """Four steps; in the second rank 1 has a NaN in the first of two buckets, whose codes are under way by then.

    Returns:
        "gaps": to one process in which there was no second step; "moved": by how much each bucket's residual changed in
        it, over its norm; "all_nan": whether nothing else came out; "told": whose fault it was; "waited": whether a
        bucket waited until ranks had agreed, by bucket, in the first step.
    """
    both = Beside(world, [scheme, scheme])
    gaps = [both.gap(1, both.step(1))]
    waited = [one.took.wire_s > 0 for one in both.exchange.buffers]
    before = [one.kept() for one in both.exchange.buffers]
    lost = both.step(2, broken=[0])
    moved = [
        float((one.kept() - old).norm() / old.norm()) for one, old in zip(both.exchange.buffers, before, strict=True)
    ]
    told = [str(one) for one in both.exchange.non_finite]
    gaps += [both.gap(number, both.step(number)) for number in (3, 4)]
    both.exchange.close()
    return {
        "gaps": gaps, "moved": moved, "all_nan": all(bool(one.isnan().all()) for one in lost), "told": told,
        "waited": waited,
    }  # fmt: skip


def mixed(world: World) -> dict[str, Any]:
    """Untimed steps of a plain, a sampled and an early bucket, the second of which is sampled in step 8.

    Returns:
        "gaps": to one process; "cosines" and "waited" by bucket, of step 8.
    """
    both = Beside(world, ["none", "int8", "int8"], adapts=True)
    gaps: list[float] = []
    cosines: list[float | None] = []
    waited: list[bool] = []
    for number in (7, 8, 9):
        both.exchange.set_sampled(1 if number == 8 else None)
        gaps.append(both.gap(number, both.step(number)))
        if number == 8:
            cosines = [one.cosine for one in both.exchange.measured()]
            waited = [one.took.wire_s > 0 for one in both.exchange.buffers]
    both.exchange.close()
    return {"gaps": gaps, "cosines": cosines, "waited": waited}
