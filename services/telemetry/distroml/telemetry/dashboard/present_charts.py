"""A job's samples as its charts take them, and the marks between them: pure."""

from __future__ import annotations

from collections.abc import Sequence

from distroml.telemetry.dashboard.present import Row
from distroml.telemetry.domain.summary import Mark
from distroml.telemetry.domain.thinning import Bucket


def mark_rows(marks: Sequence[Mark]) -> list[Row]:
    """Marks of the charts."""
    return [{"kind": m.kind, "step": m.step, "text": m.text, "at": m.at_ms} for m in marks[-300:]]


def points(history: Sequence[Bucket], name: str) -> list[list[float]]:
    """A series as the charts take it: [step, mean, minimum, maximum]."""
    return [
        [b.x, _round(total / n), _round(low), _round(high)]
        for b in history
        if (stat := b.stats.get(name)) is not None
        for n, total, low, high in (stat,)
    ]


def _round(value: float) -> float:
    return float(f"{value:.6g}")
