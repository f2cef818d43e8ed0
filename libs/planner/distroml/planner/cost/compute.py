"""Seconds that one rank computes for one microbatch in one unit.

A roofline whose two sides add: a product's operations at the rate that endless products reach, plus all bytes moved
at the rate of memory. So efficiency falls as the sizes on one rank fall: weights weigh more under small microbatches,
element-wise work that tp leaves whole under large tp, scores and norms under small widths. Launching bounds it from
below. Where a unit was timed on the real machine, its times stand instead.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from distroml.planner.plan import Recompute
from distroml.planner.profile import MeasuredUnit, Unit, Work
from distroml.planner.topology import Device
from distroml.planner.training import Training


class UnitTime(NamedTuple):
    """Seconds of the two passes, and of what the backward pass computes again."""

    forward_s: float
    backward_s: float
    recompute_s: float


def rank_parameters(unit: Unit, tp: int) -> float:
    """Trainable elements of `unit` that one tp rank holds, before sharding along dp_shard."""
    return unit.parameters - unit.split_parameters + unit.split_parameters / tp


def _part(split: float, tp: int) -> float:
    return 1 - split + split / tp


class Roofline:
    """Times from operations and bytes, for one kind of device and training."""

    def __init__(self, device: Device, training: Training, parameter_itemsize: int) -> None:
        peak = device.peak(training.precision)
        self._s_per_flop = 1 / (peak * device.matmul_efficiency)
        self._s_per_attention_flop = 1 / (peak * device.attention_efficiency)
        self._s_per_byte = 1 / (device.memory_bytes_per_s * device.memory_efficiency)
        self._kernel_s = device.kernel_s
        self._weight_bytes = training.compute_itemsize
        # A weight is read for the gradient of the input; its own gradient is read, added to and written.
        self._weight_backward_bytes = training.compute_itemsize + 2 * training.gradient_bytes(parameter_itemsize)

    def _seconds(self, unit: Unit, work: Work, extra_bytes: float, samples: float, tp: int, sequence: bool) -> float:
        moved_split = unit.split if unit.moved_split is None else unit.moved_split
        moved = (1 - moved_split) / (tp if sequence else 1) + moved_split / tp
        products_s = (work.flops - work.attention_flops) * self._s_per_flop
        tiles_s = work.attention_flops * self._s_per_attention_flop
        return (products_s + tiles_s) * samples * _part(unit.split, tp) + (
            work.moved_bytes * samples * moved + extra_bytes
        ) * self._s_per_byte

    def time(self, unit: Unit, samples: float, tp: int, *, sequence: bool, recompute: Recompute) -> UnitTime:
        """One unit, `samples` in a microbatch, on one of `tp` ranks."""
        weights = rank_parameters(unit, tp) + unit.frozen_parameters
        # A lookup touches the rows of its samples only.
        used = 0.0 if unit.kind == "before" and not unit.forward.flops else weights
        launch = unit.kernels * self._kernel_s
        forward = self._seconds(unit, unit.forward, used * self._weight_bytes, samples, tp, sequence)
        backward = self._seconds(unit, unit.backward, used * self._weight_backward_bytes, samples, tp, sequence)
        forward, backward = max(forward, launch), max(backward, 2 * launch)
        again = 0.0
        if unit.kind == "block" and recompute == "full":
            again = forward
        elif unit.kind == "block" and recompute == "selective":
            again = self._seconds(unit, unit.recomputed, 0.0, samples, tp, sequence)
        return UnitTime(forward, backward, again)


class Measured:
    """Real times of units; between measured microbatches a line, beyond them the last line goes on.

    What was not measured of a unit (another tp, sequence parallelism, recomputation) is as the roofline says that it
    differs from what was.
    """

    def __init__(self, units: Iterable[MeasuredUnit], roofline: Roofline, shapes: dict[str, Unit]) -> None:
        self._points: dict[tuple[str, int, Recompute], list[MeasuredUnit]] = {}
        for unit in sorted(units, key=lambda unit: unit.microbatch):
            self._points.setdefault((unit.shape, unit.tp, unit.recompute), []).append(unit)
        self._roofline = roofline
        # Units that nobody timed are as much slower than the roofline as those that somebody did.
        real = expected = 0.0
        for (shape, tp, recompute), points in self._points.items():
            unit = shapes.get(shape)
            if unit is None or recompute != "none":
                continue
            for point in points:
                time = self._rough(unit, point.microbatch, tp)
                real += point.forward_s + point.backward_s
                expected += time.forward_s + time.backward_s
        self.scale = real / expected if expected else 1.0

    def _rough(self, unit: Unit, samples: float, tp: int) -> UnitTime:
        return self._roofline.time(unit, samples, tp, sequence=False, recompute="none")

    def _seconds(self, shape: str, tp: int, recompute: Recompute, samples: float) -> tuple[float, float]:
        points = self._points[shape, tp, recompute]
        forward = [(point.microbatch, point.forward_s) for point in points]
        backward = [(point.microbatch, point.backward_s) for point in points]
        return _along(forward, samples), _along(backward, samples)

    def time(self, unit: Unit, samples: float, tp: int, *, sequence: bool, recompute: Recompute) -> UnitTime:
        """As `Roofline.time`, from what was measured."""
        rough = self._roofline.time(unit, samples, tp, sequence=sequence, recompute=recompute)
        degrees = [degree for shape, degree, kind in self._points if shape == unit.shape and kind == "none"]
        if not degrees:
            return UnitTime(*(self.scale * seconds for seconds in rough))
        nearest = min(degrees, key=lambda degree: (abs(degree - tp), degree))
        plain = self._rough(unit, samples, nearest)
        forward_s, backward_s = self._seconds(unit.shape, nearest, "none", samples)
        forward = forward_s * rough.forward_s / plain.forward_s if plain.forward_s else forward_s
        backward = backward_s * rough.backward_s / plain.backward_s if plain.backward_s else backward_s
        if (unit.shape, nearest, recompute) in self._points:
            both_s = sum(self._seconds(unit.shape, nearest, recompute, samples))
            again = max(0.0, both_s - forward_s - backward_s) * (forward / forward_s if forward_s else 1.0)
        else:
            again = forward * rough.recompute_s / rough.forward_s if rough.forward_s else 0.0
        return UnitTime(forward, backward, again)


def _along(points: list[tuple[int, float]], samples: float) -> float:
    """Linear between points and beyond the last; below the first, and from one alone, in proportion."""
    if len(points) == 1 or samples <= points[0][0]:
        return points[0][1] * samples / points[0][0]
    at = min(max(bisect_left(points, (samples, 0.0)), 1), len(points) - 1)
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    slope = max(0.0, (y1 - y0) / (x1 - x0))
    return max(y0 + slope * (samples - x0), 0.0)
