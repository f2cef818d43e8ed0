"""A job's state in words: why it is so, and what its owner can do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.job import Job, JobState
from distroml.scheduler.domain.plan import Pending
from distroml.scheduler.domain.spec import FailureCategory, gang_size
from distroml.workerlink.backends import MPI


@dataclass(frozen=True, slots=True)
class Explanation:
    """Reason, message, and what to do."""

    reason: str
    message: str
    next_steps: tuple[str, ...] = ()


MAX_FAILURE = 300
"""Characters of a failure that the job survived."""

_WAITING_STEPS: dict[str, tuple[str, ...]] = {
    reasons.WAITING_FOR_SLOTS: (
        "`distroml nodes` shows who holds the slots",
        "ask for fewer workers: `distroml job resize JOB N`",
        "raise its priority, so that it is next when slots become free",
    ),
    reasons.WAITING_FOR_RESOURCES: (
        "drop `per_node`, so that the gang may be spread as it fits",
        "`distroml nodes` shows which nodes are partly held",
    ),
    reasons.BEHIND_OTHERS: (
        "`distroml queue` shows who is before it and what they wait for",
        "raise its priority to let it go first",
    ),
    reasons.EXCEEDS_CAPACITY: (
        "ask for fewer workers: `distroml job resize JOB N`",
        "start agents on more nodes",
        "cancel it, if it was meant for other machines",
    ),
    reasons.NO_NODES: (
        "`distroml nodes` shows the nodes and their states",
        "start an agent on a machine with slots, or open one that is cordoned: `distroml node uncordon NODE`",
    ),
}

_MPI_STEPS = (
    "ask for as many workers as one node has slots: `distroml job resize JOB N`",
    "submit it with the back end gloo, which may use several nodes",
    "`distroml nodes` shows which nodes are partly held",
)

_FAILED_STEPS: dict[FailureCategory, tuple[str, ...]] = {
    FailureCategory.EXCEPTION: (
        "`distroml job logs JOB` shows the traceback",
        "correct the script and submit it again",
    ),
    FailureCategory.OUT_OF_MEMORY: (
        "lower the microbatch or use more workers",
        "`distroml job logs JOB` shows the end",
    ),
    FailureCategory.HANG: (
        "`distroml job logs JOB` shows what it did last",
        "raise `hang_timeout_s` if it was only slow",
    ),
    FailureCategory.SETUP: (
        "check the bundle, interpreter and environment of the job",
        "`distroml events JOB` shows what was done",
    ),
    FailureCategory.NODE_LOST: ("`distroml nodes` shows which nodes are lost", "raise `retry.max_preemptions`"),
    FailureCategory.PREEMPTED: ("raise `retry.max_preemptions`, or leave it unlimited",),
    FailureCategory.NON_FINITE: ("look at the loss and the gradient norm before it", "lower the learning rate"),
    FailureCategory.CORRUPTION: (
        "`distroml checkpoints list JOB` shows which checkpoints are sound",
        "check the storage",
    ),
    FailureCategory.RENDEZVOUS_TIMEOUT: ("`distroml nodes` shows whether the nodes can be reached",),
}


def explain(job: Job, pending: Pending | None) -> Explanation:
    """Why `job` is in its state. `pending` is what the last plan said about it, where it waits."""
    match job.state:
        case JobState.NEW:
            return Explanation(reasons.NO_SUCH_JOB, "there is no such job")
        case JobState.QUEUED:
            return _queued(job, pending)
        case JobState.ADMITTED:
            message = f"has {_workers(job)}; the agents prepare them and rendezvous forms a generation"
            return _with_resize(Explanation(reasons.STARTING, message), pending)
        case JobState.RUNNING:
            place = f"generation {job.generation}, attempt {job.attempt}"
            message = f"runs with {_workers(job)}{_over(job)} in {place}{_survived(job)}"
            return _with_resize(Explanation("", message), pending)
        case JobState.PAUSING:
            return Explanation("", "is saving and stopping; its slots become free when nothing runs on them")
        case JobState.PAUSED:
            return Explanation(reasons.PAUSED, "was paused and holds no slot", ("`distroml job resume JOB`",))
        case JobState.CANCELLING:
            return Explanation("", "is being stopped" + (f": {job.message}" if job.message else ""))
        case JobState.PREEMPTING:
            return Explanation(job.reason, f"is being stopped and goes back to the queue: {job.message}")
        case JobState.SUCCEEDED:
            return Explanation("", f"every worker ended well{_survived(job)}")
        case JobState.CANCELLED:
            return Explanation("", "was cancelled" + (f": {job.message}" if job.message else ""))
        case JobState.FAILED:
            steps = _FAILED_STEPS.get(job.category, ("`distroml job logs JOB` shows what its workers wrote last",))
            return Explanation(job.reason, f"failed ({job.category}): {job.message}", _named(job, steps))
        case _:
            assert_never(job.state)


def _queued(job: Job, pending: Pending | None) -> Explanation:
    if pending is None:
        return Explanation(reasons.EVALUATING, "the next scheduling cycle will look at it, within moments")
    message, steps = pending.message, _WAITING_STEPS.get(pending.reason, ())
    if job.spec.backend == MPI and pending.reason in (reasons.WAITING_FOR_RESOURCES, reasons.EXCEEDS_CAPACITY):
        message += "; ranks of MPI are all on one node"
        steps = _MPI_STEPS
    if job.attempt:
        message += f"; attempt {job.attempt} ended: {job.message or job.reason}"
    return Explanation(pending.reason, message, _named(job, steps))


def _with_resize(explanation: Explanation, pending: Pending | None) -> Explanation:
    if pending is None:
        return explanation
    message = f"{explanation.message}; another size was asked for and waits: {pending.message}"
    return Explanation(explanation.reason or pending.reason, message, explanation.next_steps)


def _named(job: Job, steps: Sequence[str]) -> tuple[str, ...]:
    return tuple(step.replace("JOB", job.id) for step in steps)


def _survived(job: Job) -> str:
    if not job.failures:
        return ""
    count = f"{job.failures} failure{'s' * (job.failures != 1)}"
    return f", after {count}: {job.failure[:MAX_FAILURE]}" if job.failure else f", after {count}"


def _over(job: Job) -> str:
    return f" over {job.spec.backend}" if job.spec.backend else ""


def _workers(job: Job) -> str:
    size, nodes = gang_size(job.placement), len(job.placement)
    return f"{size} worker{'s' * (size != 1)} on {nodes} node{'s' * (nodes != 1)}"
