"""Two ways to do the same steps, compared by pairs of blocks that alternate inside the same processes.

Both see the same neighbours, caches and clock; which of a pair comes first swaps from pair to pair. What is measured
twice the same way tells how much of a ratio is noise. CPU time counts a process with all its threads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(slots=True)
class Pairs:
    """`first`/`second` of each pair, and the second's seconds per step."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def measure(block: Callable[[], None], steps: int) -> tuple[float, float]:
    """Wall seconds per step, and CPU seconds per step summed over all processes."""
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    block()
    own = torch.tensor([time.perf_counter() - wall, time.process_time() - cpu], dtype=torch.float64)
    dist.all_reduce(own)
    return own[0].item() / dist.get_world_size() / steps, own[1].item() / steps


def compare(first: Callable[[], None], second: Callable[[], None], count: int, steps: int) -> Pairs:
    """`count` pairs of blocks of `steps` steps. Collective."""
    found = Pairs()
    for number in range(count):
        blocks = (first, second) if number % 2 == 0 else (second, first)
        times = [measure(block, steps) for block in blocks]
        of_first, of_second = times if number % 2 == 0 else reversed(times)
        found.wall.append(of_first[0] / of_second[0])
        found.cpu.append(of_first[1] / of_second[1])
        found.wall_s.append(of_second[0])
        found.cpu_s.append(of_second[1])
    return found


def summary(ratios: list[float]) -> dict[str, float]:
    """Median, quartiles, and the standard error of the median in the normal approximation."""
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "median": statistics.median(ratios),
        "q1": quartiles[0],
        "q3": quartiles[2],
        "median_error": 1.2533 * statistics.stdev(ratios) / len(ratios) ** 0.5,
    }


def interval(ratios: list[float]) -> tuple[float, float]:
    """Between which two of them the median is, in 19 of 20 cases and however they are distributed."""
    ordered, count = sorted(ratios), len(ratios)
    below = max(0, int((count - 1 - 1.96 * count**0.5) / 2))
    return ordered[below], ordered[count - 1 - below]
