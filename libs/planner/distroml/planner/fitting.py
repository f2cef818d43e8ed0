"""Latency and rate of each level by least squares from a few timed collectives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from distroml.planner.plan import PlanRefused
from distroml.planner.topology import COLLECTIVES, Collective, Device, Level, Rate, Topology


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed collective.

    Attributes:
        collective: "all_reduce", "all_gather", "reduce_scatter", or "send" for point to point.
        bytes: the whole tensor's: what is reduced, what a gather ends with, what a scatter begins with.
        ranks: members of the group.
        seconds: how long it took, while all groups of the level ran it at once.
        busy_s: how long of that a rank's processor worked for it, where that is the one that computes.
    """

    collective: Collective
    bytes: int
    ranks: int
    seconds: float
    busy_s: float = 0.0


def _terms(sample: Sample) -> tuple[float, float]:
    """How many latencies and how many bytes over the slowest link the sample's ring has."""
    if sample.collective == "send":
        return 1.0, float(sample.bytes)
    passes = 2 if sample.collective == "all_reduce" else 1
    steps = passes * (sample.ranks - 1)
    return float(steps), steps * sample.bytes / sample.ranks


def fit_level(name: str, extent: int, samples: Sequence[Sample]) -> Level:
    """The level that explains `samples` best: least squares of relative errors, neither figure below zero.

    Collectives that were timed with two sizes or more in groups of one size get figures of their own beside the
    level's.

    Raises:
        PlanRefused: there are fewer than two different sizes, or a time is not above 0.
    """
    if extent == 1:
        # Nothing crosses it; any figure does.
        return Level(name=name, extent=1, latency_s=0.0, bytes_per_s=1e12)
    for sample in samples:
        if not sample.seconds > 0 or sample.ranks < 2:
            raise PlanRefused(f"level {name!r}: a sample needs 2 ranks and a time above 0, got {sample}")
    fitted = _fit(samples)
    if fitted is None:
        raise PlanRefused(
            f"level {name!r}: {len(samples)} samples of equal size cannot tell latency from rate; "
            "probe a small and a large message"
        )
    rates: list[Rate] = []
    for collective, ranks in product(COLLECTIVES, sorted({sample.ranks for sample in samples})):
        own = _fit([sample for sample in samples if (sample.collective, sample.ranks) == (collective, ranks)])
        if own is not None:
            rates.append(Rate(collective, ranks, *own))
    # Sums are what computation may hide.
    sums = [sample for sample in samples if sample.collective == "all_reduce"]
    seconds = sum(sample.seconds for sample in sums)
    busy = min(1.0, sum(sample.busy_s for sample in sums) / seconds) if sums else 0.0
    latency_s, bytes_per_s = fitted
    return Level(name=name, extent=extent, latency_s=latency_s, bytes_per_s=bytes_per_s, rates=tuple(rates), busy=busy)


def _fit(samples: Sequence[Sample]) -> tuple[float, float] | None:
    """Latency and rate; None where there are no sizes that differ enough to tell them apart."""
    rows: list[tuple[float, float]] = []
    for sample in samples:
        latencies, volume = _terms(sample)
        # Divided by its own time, so that a small message counts as much as a large one.
        rows.append((latencies / sample.seconds, volume / sample.seconds))
    aa = sum(a * a for a, _ in rows)
    bb = sum(b * b for _, b in rows)
    ab = sum(a * b for a, b in rows)
    determinant = aa * bb - ab * ab
    if determinant <= 1e-9 * aa * bb:
        return None
    a, b = sum(a for a, _ in rows), sum(b for _, b in rows)
    latency_s, s_per_byte = (bb * a - ab * b) / determinant, (aa * b - ab * a) / determinant
    if latency_s < 0:
        latency_s, s_per_byte = 0.0, b / bb
    elif s_per_byte <= 0:
        # Faster than the messages can show; the largest one bounds it.
        latency_s, s_per_byte = a / aa, min(1 / volume for _, volume in rows)
    return latency_s, 1 / s_per_byte


def fit_levels(device: Device, levels: Sequence[tuple[str, int]], samples: Mapping[str, Sequence[Sample]]) -> Topology:
    """The topology of `levels` (name and extent, innermost first) from each level's samples.

    A level's samples come from groups with one member in each unit of the level below.

    Raises:
        PlanRefused: a level that joins more than one unit has no samples, or too few.
    """
    return Topology(
        device=device, levels=tuple(fit_level(name, extent, samples.get(name, ())) for name, extent in levels)
    )
