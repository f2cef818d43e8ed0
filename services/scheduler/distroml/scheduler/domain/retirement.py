"""When a job's stream may leave the live state."""

from __future__ import annotations

from distroml.scheduler.domain.job import Job
from distroml.scheduler.domain.ledger import Ledger


def retires_at_ms(job: Job, ledger: Ledger, after_ms: int) -> int | None:
    """From when on the job's stream may be retired, Unix milliseconds; None while something may still happen to it.

    A job that is over may still hold slots, for what runs on them was not seen to end: the cycle and the agents'
    desired states need it until then.
    """
    if not job.finished or any(holding.job == job.id for holding in ledger.holdings.values()):
        return None
    return job.finished_at_ms + after_ms
