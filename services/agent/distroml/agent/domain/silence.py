"""When a worker counts as hung: pure policy over what was last seen of it. All times in seconds of one clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

STOPPED_S = 15.0
"""A process that is stopped (SIGSTOP) this long is hung: its peers wait for it in a collective."""

DEAF_S = 60.0
"""A managed worker that neither spoke nor used the CPU this long is hung; its link has a thread of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was last seen of a worker."""

    managed: bool
    heard_at: float
    """Last message over the link; for a plain script, its start."""
    progress_at: float
    """Last new step or phase; for a plain script, last output."""
    cpu_at: float
    """When it last used the CPU."""
    running_at: float
    """When the process was last not stopped."""
    idle: bool = False
    """It waits for a generation, or was told to end: no progress is expected."""
    last_step: int = 0


@dataclass(frozen=True, slots=True)
class Hang:
    """The worker is to be killed."""

    silent_s: float
    message: str


def judge(now: float, seen: Seen, hang_timeout_s: float) -> Hang | None:
    """Whether the worker hangs; `hang_timeout_s` of 0 switches the progress check off."""
    stopped_s = now - seen.running_at
    if stopped_s >= STOPPED_S:
        return Hang(stopped_s, f"the process has been stopped (SIGSTOP) for {stopped_s:.0f} s")
    deaf_s = now - max(seen.heard_at, seen.cpu_at)
    if seen.managed and deaf_s >= DEAF_S:
        return Hang(deaf_s, f"no message and no use of the CPU for {deaf_s:.0f} s")
    still_s = now - seen.progress_at
    if hang_timeout_s > 0 and not seen.idle and still_s >= hang_timeout_s:
        what = f"no progress after step {seen.last_step}" if seen.managed else "no output"
        return Hang(still_s, f"{what} for {still_s:.0f} s, more than hang_timeout_s = {hang_timeout_s:g}")
    return None


def forgive(seen: Seen, standstill_s: float) -> Seen:
    """`seen` after the judge itself stood still: everybody gets the time in which nobody was listened to."""
    return replace(
        seen,
        heard_at=seen.heard_at + standstill_s,
        progress_at=seen.progress_at + standstill_s,
        cpu_at=seen.cpu_at + standstill_s,
        running_at=seen.running_at + standstill_s,
    )


def standstill(now: float, last: float, period_s: float) -> float:
    """Seconds by which a tick that should come every `period_s` is late beyond what a busy machine explains."""
    gap = now - last
    return gap if gap > 3 * period_s + 1.0 else 0.0
