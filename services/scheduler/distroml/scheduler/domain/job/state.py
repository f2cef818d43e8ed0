"""What is known of one job: the fold of its events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import assert_never

from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.spec import FailureCategory, JobSpec, Placement, WorkerRange, gang_size


class JobState(StrEnum):
    """Where a job stands. `NEW` is a stream without an event."""

    NEW = "new"
    QUEUED = "queued"
    ADMITTED = "admitted"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    PREEMPTING = "preempting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ACTIVE = frozenset({JobState.ADMITTED, JobState.RUNNING})
"""The attempt shall run: its gang is exactly what the ledger holds for it."""

STOPPING = frozenset({JobState.PAUSING, JobState.CANCELLING, JobState.PREEMPTING})
"""The attempt is told to stop; its slots stay held until nothing runs on them."""

FINISHED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
"""Nothing will happen to the job any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """State of the stream `scheduler/job/<id>`.

    Attributes:
        spec: what was asked for, with the workers and priority as they were last changed.
        reason: why it is in this state, where the state alone does not say it.
        failures: failures counted against the job over its whole life; `failed_generation` the last one counted, and
            `failure` what it was.
        attempt: number of the last try, 0 before the first; `attempt_failures_left` its budget when it began.
        placement: the gang of the attempt while the attempt lasts.
        gang_workers: the range that the gang was made for; `spec.workers` may have been changed since.
        resizing: the workers were changed and the gang of the running attempt does not follow yet.
        traceparent: W3C trace context of the request for the job: all that is done for it belongs to that trace.
    """

    id: str = ""
    spec: JobSpec = field(default_factory=JobSpec)
    state: JobState = JobState.NEW
    reason: str = ""
    message: str = ""
    actor: str = ""
    submitted_at_ms: int = 0
    started_at_ms: int = 0
    finished_at_ms: int = 0
    generation: int = 0
    attempt: int = 0
    attempt_failures_left: int = 0
    failures: int = 0
    failed_generation: int = 0
    failure: str = ""
    preemptions: int = 0
    category: FailureCategory = FailureCategory.UNSPECIFIED
    placement: tuple[Placement, ...] = ()
    gang_workers: WorkerRange = field(default_factory=WorkerRange)
    resizing: bool = False
    step: int = 0
    total_steps: int = 0
    progressed_at_ms: int = 0
    traceparent: str = ""

    @property
    def active(self) -> bool:
        """Whether the current attempt shall run."""
        return self.state in ACTIVE

    @property
    def finished(self) -> bool:
        """Whether the job is over."""
        return self.state in FINISHED


def evolve(job: Job, event: e.Event) -> Job:
    """The job after `event`."""
    match event:
        case e.Submitted():
            return replace(
                job,
                id=event.job,
                spec=event.spec,
                state=JobState.QUEUED,
                actor=event.actor,
                submitted_at_ms=event.at_ms,
                traceparent=event.traceparent,
            )
        case e.Validated():
            return job
        case e.Queued():
            return replace(job, state=JobState.QUEUED, reason=event.reason, message="")
        case e.Admitted():
            return replace(
                job,
                state=JobState.ADMITTED,
                reason=reasons.STARTING,
                message="",
                attempt=event.attempt,
                placement=event.placement,
                gang_workers=job.spec.workers,
                resizing=False,
            )
        case e.AttemptStarted():
            return replace(job, attempt_failures_left=event.failures_left)
        case e.Started():
            return replace(
                job,
                state=JobState.RUNNING,
                reason="",
                message="",
                generation=event.generation,
                started_at_ms=job.started_at_ms or event.at_ms,
            )
        case e.Progressed():
            return replace(job, step=event.step, total_steps=event.total_steps, progressed_at_ms=event.at_ms)
        case e.PauseRequested():
            return replace(job, state=JobState.PAUSING, reason="", message="")
        case e.Paused():
            return replace(_without_gang(job), state=JobState.PAUSED, reason=reasons.PAUSED, message="")
        case e.Resumed():
            return job
        case e.ResizeRequested():
            return _with_workers(job, event.min_workers, event.max_workers)
        case e.Resized():
            return replace(job, placement=event.placement, gang_workers=job.spec.workers, resizing=False)
        case e.PriorityChanged():
            return replace(job, spec=replace(job.spec, priority=event.priority))
        case e.PreemptionRequested():
            return replace(job, state=JobState.PREEMPTING, reason=event.reason, message=event.message)
        case e.Preempted():
            return replace(_without_gang(job), preemptions=job.preemptions + (1 if event.counted else 0))
        case e.Requeued():
            return replace(job, state=JobState.QUEUED, reason=event.reason, message=event.message)
        case e.FailureCounted():
            return replace(
                job,
                failures=job.failures + 1,
                failed_generation=max(job.failed_generation, event.generation),
                category=event.category,
                failure=event.message,
            )
        case e.Succeeded():
            return _finished(job, JobState.SUCCEEDED, event.at_ms)
        case e.Failed():
            ended = _finished(job, JobState.FAILED, event.at_ms)
            return replace(ended, reason=event.reason, message=event.message, category=event.category)
        case e.CancelRequested():
            return replace(job, state=JobState.CANCELLING, reason="", message=event.why)
        case e.Cancelled():
            return replace(_finished(job, JobState.CANCELLED, event.at_ms), message=job.message)
        case _:
            assert_never(event)


def _with_workers(job: Job, minimum: int, maximum: int) -> Job:
    workers = replace(job.spec.workers, min=minimum, max=maximum)
    resizing = job.active and gang_size(job.placement) != maximum
    return replace(job, spec=replace(job.spec, workers=workers), resizing=resizing)


def _without_gang(job: Job) -> Job:
    return replace(job, placement=(), resizing=False)


def _finished(job: Job, state: JobState, at_ms: int) -> Job:
    category = job.category if state is JobState.FAILED else FailureCategory.UNSPECIFIED
    return replace(_without_gang(job), state=state, reason="", message="", category=category, finished_at_ms=at_ms)
