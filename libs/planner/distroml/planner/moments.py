"""The moment of a step when a rank without stages holds most, as this project's runtime goes through one.

Activations go while gradients come, and FSDP frees gathered parameters on the way: what is largest by itself is not
there at once. A pass is followed block by block, on the host's clock, as FSDP2 holds on to its buffers: the unit that
runs has its parameters whole; in the backward pass the block before is gathered ahead, and what the block behind
scatters is kept until this one scatters. That goes through one flat buffer: when it comes up, the block's parameters
and the buffer of the block behind are gone, and once it is filled, so are the gradients themselves. Codes are made of
it after that. What lies outside of the blocks stays gathered, and its gradients whole, until the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from distroml.planner.cost.chain import Chain
from distroml.planner.plan import Plan
from distroml.planner.profile import Unit


class Moment(NamedTuple):
    """Bytes at one moment beside parameters and optimizer state; what a collective works on counts as gathered.

    What sums of gradients need beside these, along either axis of data-parallel ranks, is in `buffers`.
    """

    activations: float
    gradients: float
    gathered: float
    transient: float
    buffers: float = 0.0


class Sums(NamedTuple):
    """What sums along dp_replicate take up beside the gradients.

    Attributes:
        bucket: bytes of a full buffer; once so many gradients are whole, the first one is summed. 0: none are.
        working: bytes beside the buffer that is being summed.
        filled: whether gradients move into buffers that come up for them; else they lie in buffers all the time.
        at_end: whether no sum begins before all gradients are whole.
    """

    bucket: float = 0.0
    working: float = 0.0
    filled: bool = False
    at_end: bool = False

    def held(self, whole: float, *, end: bool = False) -> float:
        """Bytes once gradients of `whole` bytes are whole, and all of them at the `end`."""
        if not self.bucket or not (end or (whole >= self.bucket and not self.at_end)):
            return 0.0
        if not self.filled:
            return self.working
        # One buffer comes up before its own gradients go, and while the one before it is summed.
        second = min(self.bucket, whole - self.bucket) if end or whole >= 2 * self.bucket else 0.0
        return max(min(self.bucket, whole), self.working + max(0.0, second))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one rank goes through in one step.

    Attributes:
        chain: the model.
        plan: without stages.
        microbatch: samples of one pass.
        gather_bytes: of one gathered element.
        gradient_bytes: of one element's gradient.
        lasting: gradients have a place all the time: buffers, or earlier microbatches' sums.
        transient: temporary bytes of one sample in a unit.
        sums: along dp_replicate.
        scattering: bytes beside the flat buffer of so many elements while it is scattered along dp_shard as codes.
    """

    chain: Chain
    plan: Plan
    microbatch: int
    gather_bytes: float
    gradient_bytes: float
    lasting: bool
    transient: Callable[[Unit], float]
    sums: Sums
    scattering: Callable[[float], float]

    def fullest(self) -> Moment:
        """The moment with most bytes."""
        return max(self._moments(), key=sum)

    def _moments(self) -> Iterator[Moment]:
        first, stop, end = self.chain.first, self.chain.first + self.chain.blocks, len(self.chain.units)
        # After the passes. What the optimizer computes on the way, a few times its largest parameter, no profile tells.
        whole = self._trainable(0, end)
        yield Moment(0.0, self._sharded(whole), 0.0, 0.0, self.sums.held(self._in_place(whole), end=True))
        around = self._around()
        behind = self._whole(self._trainable(stop, end))
        kept = around if self.plan.reshard_after_forward else around + self._gathered(first, stop)
        # The last block's buffer is let go when the backward pass begins.
        yield self._moment(end, stop, kept + self._gathered(stop - 1, stop) if first < stop else kept)
        if stop < end:
            yield self._moment(end, stop, kept, unit=stop)
        for block in self._blocks(first, stop):
            own = self._whole(self._trainable(block, block + 1))
            ahead = first if not self.plan.reshard_after_forward else max(first, block - 1)
            there = around + behind + self._gathered(ahead, block + 1)
            there += self._whole(self._trainable(block + 1, min(block + 2, stop)))
            yield self._moment(block + 1, block + 1, there, unit=block)
            yield self._moment(block, block + 1, there + own)
            if self.plan.dp_shard > 1:
                left = around + behind + self._gathered(ahead, block)
                yield from self._scattered(block, block + 1, left, self._trainable(block, block + 1))
        scattered = self._whole(self._trainable(first, min(first + 1, stop)))
        if first:
            yield self._moment(first, first, around + behind + scattered, unit=0)
        if self.plan.dp_shard > 1:
            yield self._moment(0, first, around + scattered + self._whole(self._outside()))
            yield from self._scattered(0, first, 0.0, self._outside())

    def _scattered(self, saved: int, reached: int, beside: float, elements: float) -> Iterator[Moment]:
        """Gradients are copied into a flat buffer; when they are gone, codes are made of it."""
        flat = self._whole(elements)
        yield self._moment(saved, reached, beside + 2 * flat)
        yield self._moment(saved, reached, beside + flat, codes=self.scattering(elements))

    def _moment(self, saved: int, reached: int, gathered: float, unit: int | None = None, codes: float = 0.0) -> Moment:
        """With what the first `saved` units saved, gradients from unit `reached` on, and `unit` at work."""
        activations = self.chain.saved(self.plan.tp, self.plan.sequence_parallel, self.plan.recompute)
        # What lies outside of the blocks is whole until it is scattered last: it is among what is gathered.
        upto = self.chain.first + self.chain.blocks if self.plan.dp_shard > 1 else len(self.chain.units)
        done = self._trainable(reached, max(reached, upto))
        return Moment(
            activations.over((0, saved)) * self.microbatch,
            self._sharded(done),
            gathered,
            0.0 if unit is None else self.transient(self.chain.units[unit]) * self.microbatch,
            self.sums.held(self._in_place(done)) + codes,
        )

    def _blocks(self, first: int, stop: int) -> list[int]:
        """Where the most can be: bytes change evenly along blocks that are alike, but where sums begin."""
        if self.chain.uniform:
            found = {first, first + 1, stop - 2, stop - 1, *self._departures(first, stop)}
            return sorted(block for block in found if first <= block < stop)
        return list(range(first, stop))

    def _departures(self, first: int, stop: int) -> Iterator[int]:
        """The block at work when one buffer is full, and when two are."""
        each = self._in_place(self._trainable(first, first + 1)) if first < stop else 0.0
        if not each or not self.sums.bucket:
            return
        behind = 0.0 if self.plan.dp_shard > 1 else self._in_place(self._trainable(stop, len(self.chain.units)))
        for buckets in (1, 2):
            yield stop - 1 - max(0, math.ceil((buckets * self.sums.bucket - behind) / each))

    def _trainable(self, start: int, stop: int) -> float:
        return self.chain.trainable(self.plan.tp, (start, stop)) if start < stop else 0.0

    def _outside(self) -> float:
        """Trainable elements outside of the blocks, shared ones once."""
        first, stop = self.chain.first, self.chain.first + self.chain.blocks
        return self._trainable(0, len(self.chain.units)) - self._trainable(first, stop)

    def _around(self) -> float:
        """Bytes gathered for what lies outside of the blocks."""
        frozen, units = self.chain.sizes(self.plan.tp).frozen, len(self.chain.units)
        blocks = (self.chain.first, self.chain.first + self.chain.blocks)
        elements = self._outside() + frozen.over((0, units)) - frozen.over(blocks)
        return elements * self.gather_bytes if self.plan.dp_shard > 1 else 0.0

    def _gathered(self, start: int, stop: int) -> float:
        if self.plan.dp_shard == 1:
            return 0.0
        frozen = self.chain.sizes(self.plan.tp).frozen.over((start, stop))
        return (self._trainable(start, stop) + frozen) * self.gather_bytes

    def _whole(self, elements: float) -> float:
        """Bytes of gradients that are not scattered yet; where nothing is scattered they are where they stay."""
        return elements * self.gradient_bytes if self.plan.dp_shard > 1 else 0.0

    def _in_place(self, elements: float) -> float:
        """Bytes of gradients where they stay."""
        return elements * self.gradient_bytes / self.plan.dp_shard

    def _sharded(self, elements: float) -> float:
        """What they take up there."""
        return self._in_place(self._trainable(0, len(self.chain.units)) if self.lasting else elements)
