"""What a node shall run, derived from the ledger and the jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.job import Job, JobState
from distroml.scheduler.domain.ledger import Holding, Ledger, Share
from distroml.scheduler.domain.spec import JobSpec


@dataclass(frozen=True, slots=True)
class Stop:
    """The attempt is to end on the node; `checkpoint`: its workers may save first."""

    reason: str
    grace_s: int
    checkpoint: bool


@dataclass(frozen=True, slots=True)
class GangMember:
    """How many workers of the gang a node has."""

    node: str
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredAttempt:
    """One attempt on one node."""

    job: str
    attempt: int
    spec: JobSpec
    slots: tuple[str, ...]
    gang: tuple[GangMember, ...]
    stop: Stop | None
    failures_left: int
    traceparent: str = ""


_STOP_OF = {
    JobState.PAUSING: (reasons.STOP_PAUSED, True),
    JobState.PREEMPTING: (reasons.STOP_PREEMPTED, True),
    JobState.CANCELLING: (reasons.STOP_CANCELLED, False),
    JobState.CANCELLED: (reasons.STOP_CANCELLED, False),
    JobState.SUCCEEDED: (reasons.STOP_FINISHED, False),
    JobState.FAILED: (reasons.STOP_FAILED, False),
}


def desired(ledger: Ledger, jobs: Mapping[str, Job], node: str) -> tuple[DesiredAttempt, ...]:
    """Everything the node shall run or stop, by job and attempt.

    What the agent reported as stopped is left out: it is never asked to start that again.
    """
    return tuple(
        _attempt(jobs.get(holding.job, Job()), holding, share)
        for _, holding in sorted(ledger.holdings.items())
        if (share := holding.share(node)) is not None and not share.stopped
    )


def _attempt(job: Job, holding: Holding, share: Share) -> DesiredAttempt:
    return DesiredAttempt(
        job=holding.job,
        attempt=holding.attempt,
        # A range that the gang does not follow yet is no news for rendezvous.
        spec=replace(job.spec, workers=job.gang_workers),
        slots=share.slots,
        gang=tuple(GangMember(part.node, len(part.slots)) for part in holding.gang),
        stop=_stop(job, holding, share),
        failures_left=job.attempt_failures_left,
        traceparent=job.traceparent,
    )


def _stop(job: Job, holding: Holding, share: Share) -> Stop | None:
    grace_s = job.spec.grace_s
    if job.attempt != holding.attempt or not job.active:
        reason, checkpoint = _STOP_OF.get(job.state, (reasons.STOP_PREEMPTED, True))
        return Stop(reason, grace_s, checkpoint)
    # A resize took the node out of the gang: rendezvous drains the generation, so the workers save on their way.
    return None if share.slots else Stop(reasons.STOP_RESIZED, grace_s, True)
