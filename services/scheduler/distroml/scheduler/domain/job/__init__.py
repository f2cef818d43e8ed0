"""One job: what may happen to it and what is known of it. Pure."""

from distroml.scheduler.domain.job.decide import JOB, decide
from distroml.scheduler.domain.job.state import ACTIVE, FINISHED, STOPPING, Job, JobState, evolve

__all__ = ["ACTIVE", "FINISHED", "JOB", "STOPPING", "Job", "JobState", "decide", "evolve"]
