"""Retry budgets: failures of the job itself and losses that were not its fault are counted apart."""

from __future__ import annotations

from distroml.scheduler.domain import reasons
from distroml.scheduler.domain.spec import UNLIMITED, RetryPolicy


def failures_left(policy: RetryPolicy, failures: int) -> int:
    """Failures the job may still have before it fails."""
    return max(0, policy.max_failures - failures)


def may_fail_again(policy: RetryPolicy, failures: int) -> bool:
    """Whether the job goes on after its `failures`-th failure."""
    return failures <= policy.max_failures


def may_be_preempted_again(policy: RetryPolicy, preemptions: int) -> bool:
    """Whether the job goes back to the queue after its `preemptions`-th preemption."""
    return policy.max_preemptions == UNLIMITED or preemptions <= policy.max_preemptions


def counts_as_preemption(reason: str) -> bool:
    """Whether an attempt ended for `reason` uses up a preemption: a failed set-up is already counted as a failure."""
    return reason != reasons.SETUP_FAILED
