"""Clocks that are not ours, watched: whose is far off is told to health and to the metric."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from distroml.observability import names
from distroml.observability.metrics import gauge
from distroml.rpc.clockreading import Now, Reading, trouble

_KEPT: Final = 3

_APART = gauge(
    names.CLOCK_APART,
    "How far a clock is ahead of this machine's, seconds; of several agents', the one that is furthest off.",
    (names.LABEL_WHERE,),
)


def told(where: str, reading: Reading) -> None:
    """For the metric."""
    _APART.labels(where).set(reading.ahead_s)


def troubles(readings: Iterable[tuple[str, str, Reading | None]]) -> str | None:
    """What is wrong with any of several clocks, each with its place in the metric and its name in the text.

    Those that nobody could read are passed over.
    """
    found: list[str] = []
    for where, whose, reading in readings:
        if reading is not None:
            told(where, reading)
            if (why := trouble(whose, reading)) is not None:
                found.append(why)
    return "; ".join(found) or None


class Clocks:
    """What others said of their time without being asked, and whose clock is off.

    A message that was long under way makes its sender's clock seem behind: of a sender's last readings the one counts
    that is least behind.
    """

    def __init__(self, where: str, tell: Callable[[str | None], None], now: Now = time.time) -> None:
        """Told to `tell`: what is wrong with them, and None as soon as nothing is."""
        self._where, self._tell, self._now = where, tell, now
        self._of: dict[str, deque[float]] = {}
        self._told: str | None = None

    def note(self, whose: str, said_s: float) -> None:
        """A message has come in which somebody says his time."""
        self._of.setdefault(whose, deque(maxlen=_KEPT)).append(said_s - self._now())
        self._look()

    def forget(self, whose: str) -> None:
        """Nothing more will come from there."""
        self._of.pop(whose, None)
        self._look()

    def _look(self) -> None:
        readings = {whose: Reading(max(ahead), 0.0) for whose, ahead in self._of.items()}
        told(self._where, max(readings.values(), key=lambda one: abs(one.ahead_s), default=Reading(0.0, 0.0)))
        off = sorted((whose for whose, one in readings.items() if one.apart), key=lambda w: -abs(readings[w].ahead_s))
        why = trouble(off[0], readings[off[0]]) if off else None
        if why is not None and len(off) > 1:
            why = f"{len(off)} clocks are off, such as: {why}"
        # Not with every message anew, for its seconds differ.
        if (why is None) != (self._told is None):
            self._tell(why)
            self._told = why
