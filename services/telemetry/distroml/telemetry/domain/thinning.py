"""Bounded histories: the newest points as they came, older ones as minimum, maximum and mean of ever longer intervals.

A series keeps levels. Level 0 holds single points; a bucket of level k holds `FANOUT ** k` of them. Every level keeps
its newest `KEEP` buckets, so a million steps of one rank are some four thousand rows and the newest thousand steps are
exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

FANOUT_BITS = 3
FANOUT = 1 << FANOUT_BITS
LEVELS = 8
KEEP = 1024

Stat = tuple[int, float, float, float]
"""Count, sum, minimum, maximum."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """An interval of a series: `index` counts intervals of its level, `x` and `at_ms` are those of its newest point."""

    level: int
    index: int
    x: int
    at_ms: int
    generation: int
    stats: Mapping[str, Stat]


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """`values` without those that are no number: one NaN would be the mean of its interval for ever."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def point(x: int, at_ms: int, generation: int, values: Mapping[str, float]) -> Bucket:
    """One point as a bucket of level 0."""
    return Bucket(0, x, x, at_ms, generation, {name: (1, v, v, v) for name, v in values.items()})


def merged(first: Mapping[str, Stat], second: Mapping[str, Stat]) -> dict[str, Stat]:
    """Statistics over both."""
    result = dict(first)
    for name, (n, total, low, high) in second.items():
        if name in result:
            m, sum_, least, most = result[name]
            result[name] = (m + n, sum_ + total, min(least, low), max(most, high))
        else:
            result[name] = (n, total, low, high)
    return result


def absorb(into: Bucket | None, child: Bucket, level: int) -> Bucket:
    """The bucket of `level` that holds `child`, together with what it held before."""
    index = child.x >> (FANOUT_BITS * level)
    stats = child.stats if into is None else merged(into.stats, child.stats)
    return Bucket(level, index, child.x, child.at_ms, child.generation, stats)


class Pyramid:
    """The open buckets of one series, newest point first of all. Holds no history: closed buckets are handed out.

    Attributes:
        last: the newest x, or -1.
        generation: that of the newest point.
    """

    def __init__(self) -> None:
        self.last = -1
        self.generation = 0
        self._open: list[Bucket | None] = [None] * LEVELS

    def restore(self, rows: Iterable[Bucket]) -> None:
        """Take up a stored series again: `rows` are per level those after the newest stored one of the level above.

        They must come finest level last and ascending inside a level.
        """
        for row in rows:
            if row.level + 1 < LEVELS:
                self._feed(row, [])
            if row.level == 0:
                self.last, self.generation = row.x, row.generation

    def add(self, x: int, at_ms: int, generation: int, values: Mapping[str, float]) -> list[Bucket]:
        """Buckets to store now: the point itself, and those of coarser levels that it closed.

        The caller sees to it that `x` is past `last`.
        """
        row = point(x, at_ms, generation, values)
        out = [row]
        self._feed(row, out)
        self.last, self.generation = x, generation
        return out

    def _feed(self, child: Bucket, out: list[Bucket]) -> None:
        for level in range(child.level + 1, LEVELS):
            open_ = self._open[level]
            if open_ is None or open_.index == child.x >> (FANOUT_BITS * level):
                self._open[level] = absorb(open_, child, level)
                return
            self._open[level] = absorb(None, child, level)
            out.append(open_)
            child = open_


def joined(levels: Sequence[Sequence[Bucket]]) -> list[Bucket]:
    """One ascending history out of a coarse level and the ever finer rows that follow it."""
    result: list[Bucket] = []
    for rows in levels:
        end = result[-1].x if result else -1
        result.extend(row for row in rows if row.x > end)
    return result


def thinned(rows: Sequence[Bucket], max_points: int) -> list[Bucket]:
    """At most `max_points` buckets over the same points; no minimum or maximum is lost."""
    if len(rows) <= max_points:
        return list(rows)
    size = -(-len(rows) // max_points)
    result: list[Bucket] = []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        stats: dict[str, Stat] = {}
        for row in group:
            stats = merged(stats, row.stats)
        last = group[-1]
        result.append(Bucket(last.level, last.index, last.x, last.at_ms, last.generation, stats))
    return result
