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
_NONE: Final = Reading(0.0, 0.0)

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
        self._readings: dict[str, Reading] = {}
        self._off: set[str] = set()
        self._furthest = ""
        self._told = False

    def note(self, whose: str, said_s: float) -> None:
        """A message has come in which somebody says his time."""
        said = self._of.setdefault(whose, deque(maxlen=_KEPT))
        said.append(said_s - self._now())
        reading = self._readings[whose] = Reading(max(said), 0.0)
        (self._off.add if reading.apart else self._off.discard)(whose)
        # There may be thousands of them, and a message of one is no reason to look at all the others.
        if whose == self._furthest:
            self._find_furthest()
        elif not self._furthest or abs(reading.ahead_s) > abs(self._readings[self._furthest].ahead_s):
            self._furthest = whose
            told(self._where, reading)
        self._say()

    def forget(self, whose: str) -> None:
        """Nothing more will come from there."""
        self._of.pop(whose, None)
        self._readings.pop(whose, None)
        self._off.discard(whose)
        if whose == self._furthest:
            self._find_furthest()
        self._say()

    def _find_furthest(self) -> None:
        self._furthest = max(self._readings, key=lambda one: abs(self._readings[one].ahead_s), default="")
        told(self._where, self._readings.get(self._furthest, _NONE))

    def _say(self) -> None:
        # Not with every message anew, for its seconds differ.
        if bool(self._off) == self._told:
            return
        self._told = bool(self._off)
        self._tell(self._trouble() if self._off else None)

    def _trouble(self) -> str | None:
        furthest = max(self._off, key=lambda one: abs(self._readings[one].ahead_s))
        why = trouble(furthest, self._readings[furthest])
        return f"{len(self._off)} clocks are off, such as: {why}" if len(self._off) > 1 else why
