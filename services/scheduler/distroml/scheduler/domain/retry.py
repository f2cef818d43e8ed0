"""Retry budgets: failures of the job itself and losses that were not its fault are counted apart."""

from __future__ import annotations

from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.spec import DEFAULT_MAX_FAILURES, UNLIMITED, RetryPolicy


def max_failures(policy: RetryPolicy) -> int:
    """Failures of its own that a job survives."""
    return DEFAULT_MAX_FAILURES if policy.max_failures is None else policy.max_failures


def max_preemptions(policy: RetryPolicy) -> int:
    """Losses without its fault that a job survives, or `UNLIMITED`."""
    return UNLIMITED if policy.max_preemptions is None else policy.max_preemptions


def failures_left(policy: RetryPolicy, failures: int) -> int:
    """Failures the job may still have before it fails."""
    return max(0, max_failures(policy) - failures)


def may_fail_again(policy: RetryPolicy, failures: int) -> bool:
    """Whether the job goes on after its `failures`-th failure."""
    return failures <= max_failures(policy)


def may_be_preempted_again(policy: RetryPolicy, preemptions: int) -> bool:
    """Whether the job goes back to the queue after its `preemptions`-th preemption."""
    allowed = max_preemptions(policy)
    return allowed == UNLIMITED or preemptions <= allowed


def counts_as_preemption(reason: str) -> bool:
    """Whether an attempt ended for `reason` uses up a preemption: a failed set-up is already counted as a failure."""
    return reason != reasons.SETUP_FAILED
