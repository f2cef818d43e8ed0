"""A profile's units as running sums, so that any stage's seconds and bytes are two look-ups.

Units of one shape cost the same: each sum costs one evaluation per shape.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, repeat
from typing import NamedTuple

from distroml.planner.buffers import Matrix, fullest
from distroml.planner.codes import Buffer, Sides
from distroml.planner.cost.collectives import all_reduce_s
from distroml.planner.cost.compute import Measured, Roofline, rank_parameters
from distroml.planner.plan import Recompute
from distroml.planner.profile import MeasuredUnit, ModelProfile, Shape, Unit
from distroml.planner.topology import Device, Route
from distroml.planner.training import Training

Span = tuple[int, int]
"""Units from the first up to, not including, the second."""


class Sums:
    """Running sums of one value per unit."""

    __slots__ = ("_upto",)

    def __init__(self, values: Iterable[float]) -> None:
        self._upto = list(accumulate(values, initial=0.0))

    def over(self, span: Span) -> float:
        """The sum over the units of `span`."""
        return self._upto[span[1]] - self._upto[span[0]]


class Times(NamedTuple):
    """Seconds of one microbatch, unit by unit: computing, and the collectives of tp in both passes."""

    forward: Sums
    backward: Sums
    recompute: Sums
    tp_forward: Sums
    tp_backward: Sums


class Sizes(NamedTuple):
    """What one tp rank holds, unit by unit: trainable and frozen elements, and tensors of trainable ones."""

    trainable: Sums
    frozen: Sums
    tensors: Sums


class Chain:
    """One profile's sums for one kind of device; remembers those that were asked for."""

    def __init__(
        self,
        profile: ModelProfile,
        device: Device,
        training: Training,
        measured: Sequence[MeasuredUnit],
    ) -> None:
        self.profile = profile
        self.units = profile.units
        self.blocks = len(profile.blocks)
        self.first = next((n for n, unit in enumerate(self.units) if unit.kind == "block"), 0)
        self.shapes = {unit.shape: unit for unit in self.units}
        # Blocks of one shape: stages with equally many blocks then cost the same wherever they lie.
        self.uniform = len({unit.shape for unit in profile.blocks}) <= 1
        roofline = Roofline(device, training, profile.parameter_itemsize)
        self._clock = Measured(measured, roofline, self.shapes) if measured else roofline
        self._times: dict[tuple[float, int, bool, Recompute, Route], Times] = {}
        self._sizes: dict[int, Sizes] = {}
        self._saved: dict[tuple[int, bool, Recompute], Sums] = {}
        self._sides: dict[object, tuple[Sides, ...]] = {}
        self._fullest: dict[object, Buffer] = {}

    def spans(self, stages: Sequence[int]) -> list[Span]:
        """The units of each stage: what comes before the chain lies on the first, what comes after on the last."""
        if not stages:
            return [(0, len(self.units))]
        ends = [self.first + upto for upto in accumulate(stages)]
        ends[-1] = len(self.units)
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def alike(self, span: Span) -> object:
        """Equal for stages that cost the same."""
        inside = span[0] >= self.first and span[1] <= self.first + self.blocks
        return span[1] - span[0] if self.uniform and inside else span

    def _each(self, value: Callable[[Unit], float]) -> list[float]:
        by_shape = {shape: value(unit) for shape, unit in self.shapes.items()}
        return [by_shape[unit.shape] for unit in self.units]

    def times(self, samples: float, tp: int, sequence: bool, recompute: Recompute, route: Route) -> Times:
        """Seconds of a microbatch of `samples`; the groups of tp take `route`."""
        key = (samples, tp, sequence, recompute, route)
        if found := self._times.get(key):
            return found
        computed = {
            shape: self._clock.time(unit, samples, tp, sequence=self._along(unit, sequence), recompute=recompute)
            for shape, unit in self.shapes.items()
        }
        reduced = {
            shape: all_reduce_s(route, unit.tp_reduced_bytes * samples, count=max(1, unit.tp_collectives))
            for shape, unit in self.shapes.items()
        }
        times = Times(
            forward=Sums(computed[unit.shape].forward_s for unit in self.units),
            backward=Sums(computed[unit.shape].backward_s for unit in self.units),
            recompute=Sums(computed[unit.shape].recompute_s for unit in self.units),
            tp_forward=Sums(reduced[unit.shape] for unit in self.units),
            tp_backward=Sums(reduced[unit.shape] * self._sums_again(unit, sequence, recompute) for unit in self.units),
        )
        self._times[key] = times
        return times

    def _sums_again(self, unit: Unit, sequence: bool, recompute: Recompute) -> float:
        """What a backward pass exchanges along tp, as a factor of what the forward pass does."""
        if unit.kind != "block":
            return 1.0
        if self.profile.engine != "torch":
            return 2.0 if recompute == "full" else 1.0
        if recompute != "none":
            # The forward pass again, up to the last sum: nothing behind it is wanted.
            calls = max(1, unit.tp_collectives)
            return 1.0 + (calls - 1) / calls
        # What was gathered in the forward pass is not kept: half a sum more.
        return 1.5 if sequence else 1.0

    def _along(self, unit: Unit, sequence: bool) -> bool:
        """Whether sequence parallelism divides what the unit holds as copies; see `ModelProfile.engine`."""
        return sequence and (unit.kind == "block" or self.profile.engine != "torch")

    def sizes(self, tp: int) -> Sizes:
        """Elements on one of `tp` ranks."""
        if tp not in self._sizes:
            trainable = self._each(lambda unit: rank_parameters(unit, tp))
            self._sizes[tp] = Sizes(
                Sums(trainable),
                Sums(self._each(lambda unit: unit.frozen_parameters)),
                Sums(self._each(lambda unit: unit.tensors)),
            )
        return self._sizes[tp]

    def trainable(self, tp: int, span: Span) -> float:
        """Trainable elements of a stage on one tp rank; what its units share counts once."""
        total = self.sizes(tp).trainable.over(span)
        for group, elements in zip(self.profile.tied, self.profile.tied_parameters, strict=True):
            here = sum(span[0] <= index < span[1] for index in group)
            if here > 1:
                total -= (here - 1) * self.tied(group, elements, tp)
        return total

    def tied(self, group: tuple[int, ...], elements: int, tp: int) -> float:
        """Elements that the units of `group` share, on one tp rank."""
        # Shared parameters are split where their first unit's are.
        return elements / tp if self.units[group[0]].split_parameters >= elements else float(elements)

    def sides(self, tp: int, shards: int, spans: Sequence[Span]) -> tuple[Sides, ...]:
        """The trainable tensors of these stages as one rank of tp and dp_shard has them, seen as matrices."""
        key = (tp, shards, *spans)
        if key not in self._sides:
            counted: Counter[tuple[int, int]] = Counter()
            for start, end in spans:
                for unit in self.units[start:end]:
                    for shape in unit.shapes:
                        counted[_as_matrix(shape, tp, shards)] += shape.many
            self._sides[key] = tuple(Sides(*sides, many) for sides, many in sorted(counted.items()))
        return self._sides[key]

    def fullest(self, tp: int, shards: int, spans: Sequence[Span], most: float) -> Buffer:
        """The largest buffer of up to `most` elements in which one rank sums gradients of these stages along
        dp_replicate. What no profile tells the shapes of counts as vectors that may be cut anywhere.
        """
        key = (tp, shards, *spans, most)
        if key not in self._fullest:
            # The last parameters' gradients come first. What lies outside of the blocks FSDP sums later, apart.
            places = [place for start, end in spans for place in range(start, end)][::-1]
            parts = [[place for place in places if self._is_block(place) == inside] for inside in (True, False)]
            found = [
                fullest((sides for place in part for sides in self._matrices(place, tp, shards)), most)
                for part in (parts if shards > 1 else [places])
            ]
            told = sum(one.rows * one.columns * one.many for one in self.sides(tp, shards, spans))
            rest = sum(self.trainable(tp, span) for span in spans) / shards - told
            self._fullest[key] = max(*found, Buffer(math.ceil(max(0.0, min(rest, most)))), key=lambda one: one.elements)
        return self._fullest[key]

    def _is_block(self, place: int) -> bool:
        return self.first <= place < self.first + self.blocks

    def _matrices(self, place: int, tp: int, shards: int) -> Iterator[Matrix]:
        for shape in reversed(self.units[place].shapes):
            yield from repeat(_as_matrix(shape, tp, shards), shape.many)

    def saved(self, tp: int, sequence: bool, recompute: Recompute) -> Sums:
        """Bytes per sample that forward passes leave on one tp rank, unit by unit."""
        key = (tp, sequence, recompute)
        if key not in self._saved:
            self._saved[key] = Sums(
                self._each(lambda unit: saved_bytes(unit, tp, self._along(unit, sequence), recompute))
            )
        return self._saved[key]


def _as_matrix(shape: Shape, tp: int, shards: int) -> tuple[int, int]:
    """Rows and columns of one rank's part: dp_shard divides the first dimension, and of cuts the least sum counts."""
    sizes = list(shape.sizes)
    if shape.divided is not None:
        sizes[shape.divided] = -(-sizes[shape.divided] // tp)
    if sizes:
        sizes[0] = -(-sizes[0] // shards)
    cuts = [(math.prod(sizes[:cut]), math.prod(sizes[cut:])) for cut in range(len(sizes) + 1)]
    return min(cuts, key=sum)


def saved_bytes(unit: Unit, tp: int, sequence: bool, recompute: Recompute) -> float:
    """Bytes per sample that a forward pass of `unit` leaves on one tp rank."""
    saved = unit.saved.get(recompute) or unit.saved["none"]
    copies = saved.whole_bytes - saved.partial_bytes
    return saved.partial_bytes + copies / (tp if sequence else 1) + saved.split_bytes / tp
