"""Spans of what the scheduler does of itself, each in the trace of the job that it is about."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

from distroml.observability import names, trace
from distroml.observability.tracing import Tracing
from distroml.scheduler.domain.job import Job
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.plan import Step


@contextmanager
def scheduling(tracing: Tracing, steps: Sequence[Step], jobs: Mapping[str, Job]) -> Generator[str]:
    """Gives the trace context for a commit of `steps`; each job has its span where the commit succeeds.

    A commit about several jobs belongs to the trace of none: its context is empty.
    """
    began_ns = time.time_ns()
    spans = [
        (step, above, above.child())
        for step in steps
        if step.job_commands and (above := trace.parse(jobs.get(step.job, Job()).traceparent))
    ]
    yield spans[0][2].traceparent if spans and len(steps) == 1 else ""
    for step, above, own in spans:
        attributes = {
            names.SPAN_JOB: step.job,
            names.SPAN_COMMANDS: ",".join(type(command).__name__ for command in step.job_commands),
        }
        for command in step.job_commands:
            if isinstance(command, c.Admit):
                attributes[names.SPAN_NODE] = ",".join(sorted({part.node for part in command.placement}))
        tracing.record(
            names.SPAN_SCHEDULE,
            own,
            parent=above,
            start_ns=began_ns,
            end_ns=time.time_ns(),
            attributes=attributes,
        )
