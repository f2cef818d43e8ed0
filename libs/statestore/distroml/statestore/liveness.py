"""When a lease is over: pure judgement on one machine's monotonic clock.

Every process that has the store open may judge. A judge counts only time during which it was itself awake: one
that just started, or that stood still for more than a third of a lease's ttl, first grants that lease a full ttl.
So killing or stopping every process for a minute expires nobody, while a dead holder among living processes
expires within its ttl and one sweep.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SWEEP_INTERVAL_S = 0.2
"""Below a third of the shortest ttl (1 s), so that a judge on time never takes itself for one that stood still."""


class Clock(Protocol):
    """The clocks a store reads; tests put their own here."""

    @property
    def boot(self) -> str:
        """Id of the machine's boot, within which `monotonic` values of several processes compare."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary point of this boot."""
        ...

    def wall_ms(self) -> int:
        """Unix milliseconds; used for the age of command records only."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self) -> None:
        # Elsewhere than on Linux no id is known: values from the future of this boot are then taken as of another.
        path = Path("/proc/sys/kernel/random/boot_id")
        self.boot = path.read_text().strip() if path.exists() else ""

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC in seconds: common to all processes of a boot, and standing still while suspended."""
        return time.monotonic()

    def wall_ms(self) -> int:
        """The wall clock in Unix milliseconds."""
        return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Lease:
    """A stored lease: `renewed` is the renewing process's monotonic clock, in seconds, during `boot`."""

    id: str
    ttl_s: int
    renewed: float
    boot: str


class Judge:
    """Decides which leases are over. One per process; call `sweep` at least every `SWEEP_INTERVAL_S`."""

    def __init__(self, boot: str, now: float) -> None:
        self._boot = boot
        self._started = self._last = now
        # (end, length) of times this judge stood still, lengths falling: a longer later one covers a shorter one.
        self._gaps: list[tuple[float, float]] = []

    def sweep(self, now: float, leases: Iterable[Lease]) -> list[str]:
        """Ids of the leases that are over at `now`; takes note of how long ago the last sweep was."""
        gap, self._last = now - self._last, now
        while self._gaps and self._gaps[-1][1] <= gap:
            self._gaps.pop()
        # A gap matters only to ttls below three times its length, and for one such ttl after its end.
        self._gaps = [(end, length) for end, length in self._gaps if now <= end + 3 * length]
        if gap > 1 / 3:
            self._gaps.append((now, gap))
        return [lease.id for lease in leases if self._over(lease, now)]

    def _over(self, lease: Lease, now: float) -> bool:
        awake_since = max((end for end, length in self._gaps if length > lease.ttl_s / 3), default=self._started)
        comparable = lease.boot == self._boot and lease.renewed <= now
        return now - max(awake_since, lease.renewed if comparable else awake_since) > lease.ttl_s
