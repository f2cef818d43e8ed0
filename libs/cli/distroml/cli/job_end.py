"""What is said of a job that ended well and, as far as anybody saw, trained nothing."""

from __future__ import annotations

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2 as t


def untrained(job: jobs_pb2.Job, known: t.JobSummary) -> str:
    """That no step was seen of a job that succeeded; "" where one was, or where nobody can tell.

    A `Trainer` tells its plan before its first step. A plain script need not tell anything, so this is no error.
    """
    if job.state != jobs_pb2.JOB_STATE_SUCCEEDED or not known.position:
        return ""
    if job.progress.step or known.step or known.plans or known.checkpoints:
        return ""
    return (
        "ended with exit 0 and no step was seen: a Trainer tells its steps, a plain script need not; where it should "
        f"have trained, `distroml job logs {job.id}` shows what it wrote"
    )
