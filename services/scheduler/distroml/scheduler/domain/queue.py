"""Who is considered first, and who may pass whom: the policy of the queue.

The policy is three functions. Fair share and topology are other `order` and `fit`; backfill is another `may_pass`;
preemption takes what the plan says a blocked job lacks and asks running ones to leave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from distroml.scheduler.domain.job import Job
from distroml.scheduler.domain.placement import Placed, Refused, Slots, place
from distroml.scheduler.domain.spec import WorkerRange

Rank: TypeAlias = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Policy:
    """How the queue is worked off.

    Attributes:
        rank: smaller goes first.
        fit: where a gang goes, given free slots and all slots.
        may_pass: whether a job behind (second) may start while one before it (first) is blocked.
    """

    rank: Callable[[Job], Rank]
    fit: Callable[[WorkerRange, Slots, Slots], Placed | Refused]
    may_pass: Callable[[Job, Job], bool]


def fifo_within_priority(job: Job) -> Rank:
    """Higher priority first, then who was submitted first: a preempted job keeps its place."""
    return (-job.spec.priority, job.submitted_at_ms, job.id)


def nobody_passes(blocked: Job, behind: Job) -> bool:
    """A blocked job keeps everything behind it waiting, so that free slots add up for it."""
    del blocked, behind
    return False


STRICT_FIFO = Policy(rank=fifo_within_priority, fit=place, may_pass=nobody_passes)
