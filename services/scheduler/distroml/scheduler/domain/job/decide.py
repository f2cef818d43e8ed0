"""What may happen to one job."""

from __future__ import annotations

from typing import assert_never

from distroml.events import Decider, Rejection
from distroml.scheduler.domain import reasons, retry
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.job import events as e
from distroml.scheduler.domain.job.state import STOPPING, Job, JobState, evolve
from distroml.scheduler.domain.spec import FailureCategory, gang_size
from distroml.workerlink.backends import MPI

Events = tuple[e.Event, ...]
NOTHING_NEW: Events = ()


def decide(job: Job, command: c.Command) -> Events:
    """The events that `command` leads to.

    A wish that is already fulfilled or a report that is old news gives no event, so that a retry is no error.

    Raises:
        Rejection: the job cannot do this now; the reason is one of `reasons`.
    """
    if isinstance(command, c.Submit):
        return _submit(job, command)
    if job.state is JobState.NEW:
        raise Rejection(reasons.NO_SUCH_JOB, "there is no such job; `distroml jobs` lists those there are")
    match command:
        case c.Admit():
            return _admit(job, command)
        case c.Start():
            return _start(job, command)
        case c.Progress():
            return _progress(job, command)
        case c.CountFailure():
            return _count_failure(job, command)
        case c.FailAttempt():
            return _fail_attempt(job, command)
        case c.Finish():
            return _finish(job, command)
        case c.EndAttempt():
            return _end_attempt(job, command)
        case c.Preempt():
            return _preempt(job, command)
        case c.Pause():
            return _pause(job, command)
        case c.Resume():
            return _resume(job, command)
        case c.Cancel():
            return _cancel(job, command)
        case c.Resize():
            return _resize(job, command)
        case c.Regang():
            return _regang(job, command)
        case c.SetPriority():
            return _set_priority(job, command)
        case _:
            assert_never(command)


# ---- what users ask for


def _submit(job: Job, command: c.Submit) -> Events:
    if job.state is not JobState.NEW:
        return NOTHING_NEW
    at = command.at_ms
    return (
        e.Submitted(at_ms=at, job=command.job, spec=command.spec, actor=command.actor, traceparent=command.traceparent),
        e.Validated(at_ms=at),
        e.Queued(at_ms=at, reason="Submitted"),
    )


def _pause(job: Job, command: c.Pause) -> Events:
    _refuse_ending(job, "paused")
    requested = e.PauseRequested(at_ms=command.at_ms, actor=command.actor)
    if job.state in (JobState.PAUSING, JobState.PAUSED):
        return NOTHING_NEW
    if job.state is JobState.QUEUED:
        return (requested, e.Paused(at_ms=command.at_ms))
    return (requested,)


def _resume(job: Job, command: c.Resume) -> Events:
    _refuse_ending(job, "resumed")
    if job.state is JobState.PAUSING:
        raise Rejection(
            reasons.STILL_PAUSING, f"job {job.id} is still saving and stopping; resume it when it is paused"
        )
    if job.state is not JobState.PAUSED:
        raise Rejection(reasons.NOT_PAUSED, f"job {job.id} is {job.state}, not paused; there is nothing to resume")
    return (e.Resumed(at_ms=command.at_ms, actor=command.actor), e.Queued(at_ms=command.at_ms, reason="Resumed"))


def _cancel(job: Job, command: c.Cancel) -> Events:
    if job.state in (JobState.CANCELLING, JobState.CANCELLED):
        return NOTHING_NEW
    _refuse_finished(job, "cancelled")
    requested = e.CancelRequested(at_ms=command.at_ms, actor=command.actor, why=command.why)
    if job.state in (JobState.QUEUED, JobState.PAUSED):
        return (requested, e.Cancelled(at_ms=command.at_ms))
    return (requested,)


def _resize(job: Job, command: c.Resize) -> Events:
    _refuse_ending(job, "resized")
    low, high, per_node = command.min_workers, command.max_workers, job.spec.workers.per_node
    if low < 1 or high < low:
        raise Rejection(reasons.BAD_WORKER_RANGE, f"{low}..{high} workers is no range; ask for 1 <= min <= max")
    if per_node and high // per_node * per_node < low:
        raise Rejection(
            reasons.BAD_WORKER_RANGE,
            f"no multiple of {per_node} workers per node lies in {low}..{high}; widen the range",
            per_node=str(per_node),
        )
    if (low, high) == (job.spec.workers.min, job.spec.workers.max):
        return NOTHING_NEW
    if job.spec.backend == MPI and low != high:
        raise Rejection(
            reasons.BAD_WORKER_RANGE, f"job {job.id} runs over MPI, whose world keeps its size: ask for one number"
        )
    return (e.ResizeRequested(at_ms=command.at_ms, min_workers=low, max_workers=high, actor=command.actor),)


def _set_priority(job: Job, command: c.SetPriority) -> Events:
    _refuse_finished(job, "moved in the queue")
    if command.priority == job.spec.priority:
        return NOTHING_NEW
    return (e.PriorityChanged(at_ms=command.at_ms, priority=command.priority, actor=command.actor),)


def _refuse_finished(job: Job, what: str) -> None:
    if job.finished:
        raise Rejection(
            reasons.JOB_FINISHED,
            f"job {job.id} has {job.state} and cannot be {what}; submit it again to run it again",
            state=job.state.name,
        )


def _refuse_ending(job: Job, what: str) -> None:
    _refuse_finished(job, what)
    if job.state is JobState.CANCELLING:
        raise Rejection(reasons.JOB_CANCELLING, f"job {job.id} is being cancelled and cannot be {what}")


# ---- what the scheduling cycle does


def _admit(job: Job, command: c.Admit) -> Events:
    if job.state is not JobState.QUEUED:
        raise Rejection(reasons.NOT_QUEUED, f"job {job.id} is {job.state}; only a queued job can be admitted")
    _refuse_bad_gang(job, gang_size(command.placement))
    attempt = job.attempt + 1
    left = retry.failures_left(job.spec.retry, job.failures)
    return (
        e.Admitted(at_ms=command.at_ms, attempt=attempt, placement=command.placement),
        e.AttemptStarted(at_ms=command.at_ms, attempt=attempt, placement=command.placement, failures_left=left),
    )


def _regang(job: Job, command: c.Regang) -> Events:
    if not job.active or not job.resizing:
        raise Rejection(reasons.NOT_RESIZING, f"job {job.id} is {job.state} and waits for no other gang")
    _refuse_bad_gang(job, gang_size(command.placement))
    return (e.Resized(at_ms=command.at_ms, placement=command.placement),)


def _refuse_bad_gang(job: Job, size: int) -> None:
    workers = job.spec.workers
    if not workers.min <= size <= workers.max:
        raise Rejection(reasons.BAD_GANG, f"job {job.id} wants {workers.min}..{workers.max} workers, not {size}")


def _preempt(job: Job, command: c.Preempt) -> Events:
    if command.attempt != job.attempt or not job.active:
        return NOTHING_NEW
    return (e.PreemptionRequested(at_ms=command.at_ms, reason=command.reason, message=command.message),)


def _end_attempt(job: Job, command: c.EndAttempt) -> Events:
    if command.attempt != job.attempt or (job.state not in STOPPING and not job.active):
        return NOTHING_NEW
    match job.state:
        case JobState.PAUSING:
            return (e.Paused(at_ms=command.at_ms),)
        case JobState.CANCELLING:
            return (e.Cancelled(at_ms=command.at_ms),)
        case JobState.PREEMPTING:
            return _back_to_the_queue(job, command.at_ms)
        case _:
            raise Rejection(reasons.STILL_RUNNING, f"attempt {job.attempt} of job {job.id} was not told to stop")


def _back_to_the_queue(job: Job, at: int) -> Events:
    counted = retry.counts_as_preemption(job.reason)
    preempted = e.Preempted(at_ms=at, reason=job.reason, counted=counted)
    preemptions = job.preemptions + (1 if counted else 0)
    if not retry.may_fail_again(job.spec.retry, job.failures):
        return (preempted, _failed_budget(job, at))
    if counted and not retry.may_be_preempted_again(job.spec.retry, preemptions):
        message = (
            f"lost its slots {preemptions} times, {retry.max_preemptions(job.spec.retry)} are allowed: {job.message}"
        )
        category = FailureCategory.NODE_LOST if job.reason == reasons.NODE_LOST else FailureCategory.PREEMPTED
        failed = e.Failed(at_ms=at, category=category, reason=reasons.PREEMPTION_BUDGET_SPENT, message=message)
        return (preempted, failed)
    return (preempted, e.Requeued(at_ms=at, reason=job.reason, message=job.message))


def _failed_budget(job: Job, at: int) -> e.Failed:
    message = f"failed {job.failures} times, {retry.max_failures(job.spec.retry)} are allowed"
    return e.Failed(at_ms=at, category=job.category, reason=reasons.FAILURE_BUDGET_SPENT, message=message)


# ---- what rendezvous and the agents report


def _start(job: Job, command: c.Start) -> Events:
    if command.attempt != job.attempt or not job.active or command.generation <= job.generation:
        return NOTHING_NEW
    return (e.Started(at_ms=command.at_ms, attempt=command.attempt, generation=command.generation),)


def _progress(job: Job, command: c.Progress) -> Events:
    if command.attempt != job.attempt or not (job.active or job.state in STOPPING):
        return NOTHING_NEW
    step, total = command.step, command.total_steps
    if total > 0:
        seen = job.step * 100 // total if job.total_steps == total else -1
        news = min(step, total) * 100 // total > seen
    else:
        # Without a total there are no percents: each doubling is news.
        news = step > 0 and step >= 2 * job.step
    return (e.Progressed(at_ms=command.at_ms, step=step, total_steps=total),) if news else NOTHING_NEW


def _count_failure(job: Job, command: c.CountFailure) -> Events:
    if job.finished or command.generation <= job.failed_generation:
        return NOTHING_NEW
    return (
        e.FailureCounted(
            at_ms=command.at_ms,
            category=command.category,
            generation=command.generation,
            message=command.message,
        ),
    )


def _fail_attempt(job: Job, command: c.FailAttempt) -> Events:
    if command.attempt != job.attempt or not job.active:
        return NOTHING_NEW
    at, category = command.at_ms, command.category
    message = f"{command.node}: {command.message}"
    counted = e.FailureCounted(at_ms=at, category=category, generation=0, message=message)
    if retry.may_fail_again(job.spec.retry, job.failures + 1):
        return (counted, e.PreemptionRequested(at_ms=at, reason=reasons.SETUP_FAILED, message=message))
    return (counted, e.Failed(at_ms=at, category=category, reason=reasons.SETUP_FAILED, message=message))


def _finish(job: Job, command: c.Finish) -> Events:
    # A cancelled job ends as cancelled, whatever its workers came to in the meantime.
    if command.attempt != job.attempt or not (job.active or job.state in (JobState.PAUSING, JobState.PREEMPTING)):
        return NOTHING_NEW
    at = command.at_ms
    match command.outcome:
        case "Succeeded":
            return (e.Succeeded(at_ms=at),)
        case "Failed" if job.state is JobState.PREEMPTING:
            # The gang was torn apart from outside; what that did to the rest of it is no verdict on the job.
            return NOTHING_NEW
        case "Failed" if command.category in (FailureCategory.NODE_LOST, FailureCategory.PREEMPTED):
            if not job.active:
                return NOTHING_NEW
            return (e.PreemptionRequested(at_ms=at, reason=reasons.NODE_LOST, message=command.message),)
        case "Failed":
            failed = e.Failed(
                at_ms=at,
                category=command.category,
                reason=command.reason or reasons.FAILURE_BUDGET_SPENT,
                message=command.message,
            )
            return (failed,)
        case "Stopped":
            if not job.active:
                return NOTHING_NEW
            message = command.message or "its workers were stopped, though nobody had asked for it"
            return (e.PreemptionRequested(at_ms=at, reason=reasons.STOPPED_UNEXPECTEDLY, message=message),)
        case _:
            assert_never(command.outcome)


JOB: Decider[Job, c.Command, e.Event] = Decider(initial=Job(), decide=decide, evolve=evolve)
