"""Spans of the scheduling cycle: each in its job's trace, and none of what did not come about."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from distroml.observability import trace
from distroml.observability.tracing import Tracing
from distroml.scheduler.domain.job import Job
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.plan import Step
from distroml.scheduler.domain.spec import Placement
from distroml.scheduler.spans import scheduling

FIRST, SECOND = trace.fresh(), trace.fresh()
JOBS = {
    "job-1": Job(id="job-1", traceparent=FIRST.traceparent),
    "job-2": Job(id="job-2", traceparent=SECOND.traceparent),
    "job-old": Job(id="job-old"),
}


def admit(job: str) -> Step:
    return Step(job=job, job_commands=(c.Admit(at_ms=1, placement=(Placement(node="node-1", slots=("cpu-0",)),)),))


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    return Tracing("scheduler", [SimpleSpanProcessor(exporter)])


def test_a_placement_stands_under_the_submission(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with scheduling(tracing, [admit("job-1")], JOBS) as traceparent:
        assert exporter.get_finished_spans() == ()
    (span,) = exporter.get_finished_spans()
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == FIRST.span_id
    assert trace.parse(traceparent) == trace.TraceContext(FIRST.trace_id, f"{span.context.span_id:016x}")
    assert dict(span.attributes or {}) == {
        "distroml.job": "job-1",
        "distroml.commands": "Admit",
        "distroml.node": "node-1",
    }


def test_a_commit_of_several_jobs_belongs_to_no_trace(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with scheduling(tracing, [admit("job-1"), admit("job-2"), admit("job-old"), Step(node="node-1")], JOBS) as header:
        assert header == ""
    traces = [f"{span.context.trace_id:032x}" for span in exporter.get_finished_spans() if span.context]
    assert traces == [FIRST.trace_id, SECOND.trace_id], "each job has its span in its own"


def test_a_commit_that_failed_leaves_no_span(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(RuntimeError), scheduling(tracing, [admit("job-1")], JOBS):
        raise RuntimeError("overtaken")
    assert exporter.get_finished_spans() == ()
