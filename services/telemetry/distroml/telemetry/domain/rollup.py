"""Roll-ups: a job's metrics by buckets of time, three widths beside one another, each kept for as long as it is worth.

Counts, sums, smallest, largest and last values of a bucket can be put together in any order: several services may hold
parts of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

WIDTHS_MS = (10_000, 300_000, 3_600_000)
"""Ten seconds, five minutes, an hour."""


@dataclass(slots=True, kw_only=True)
class Rollup:
    """One metric of one job in one bucket; `step` and `generation` are the last sample's."""

    job: str
    metric: str
    width_ms: int
    start_ms: int
    n: int
    total: float
    low: float
    high: float
    last: float
    last_ms: int
    step: int
    generation: int

    def take(self, value: float, at_ms: int, step: int, generation: int) -> None:
        """One more value."""
        self.n += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)
        if at_ms >= self.last_ms:
            self.last, self.last_ms, self.step, self.generation = value, at_ms, step, generation


class RollupBuffer:
    """What was not written yet; at most `max_rows` rows, past which values are counted and dropped."""

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows: dict[tuple[str, str, int, int], Rollup] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, job: str, values: Mapping[str, float], *, at_ms: int, step: int, generation: int) -> None:
        """One step's values, into the buckets of every width. A name with a NUL, which servers refuse, is left out."""
        for metric, value in values.items():
            if "\0" in metric:
                continue
            for width in WIDTHS_MS:
                key = (job, metric, width, at_ms - at_ms % width)
                row = self._rows.get(key)
                if row is not None:
                    row.take(value, at_ms, step, generation)
                elif len(self._rows) >= self._max_rows:
                    self.dropped += 1
                else:
                    self._rows[key] = Rollup(
                        job=job,
                        metric=metric,
                        width_ms=width,
                        start_ms=key[3],
                        n=1,
                        total=value,
                        low=value,
                        high=value,
                        last=value,
                        last_ms=at_ms,
                        step=step,
                        generation=generation,
                    )

    def take(self) -> tuple[Rollup, ...]:
        """All of it; the buffer is empty then."""
        rows, self._rows = tuple(self._rows.values()), {}
        return rows


def finest(rows: Iterable[Rollup]) -> list[Rollup]:
    """One series of rows by time out of all widths: the finest there is for each stretch, coarser ones before it."""
    by_width: dict[int, list[Rollup]] = {}
    for row in rows:
        by_width.setdefault(row.width_ms, []).append(row)
    series: list[Rollup] = []
    for width in sorted(by_width):
        older = sorted(by_width[width], key=lambda r: r.start_ms)
        if series:
            begin = series[0].start_ms
            older = [r for r in older if r.start_ms + width <= begin]
        series = older + series
    return series
