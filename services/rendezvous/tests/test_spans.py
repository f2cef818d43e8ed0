"""Spans made of committed events: right parents, recorded by the replica that committed."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from distroml.observability import trace
from distroml.observability.tracing import Tracing
from distroml.rendezvous.domain import Event
from distroml.rendezvous.domain import events as ev
from distroml.rendezvous.domain.model import FailureCategory, Generation
from distroml.rendezvous.spans import JobSpans

JOB = trace.TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


class Replicas:
    """Two replicas that see the same log; the first commits."""

    def __init__(self) -> None:
        self.exporters = [InMemorySpanExporter(), InMemorySpanExporter()]
        tracings = [Tracing("rendezvous", [SimpleSpanProcessor(one)]) for one in self.exporters]
        self.spans = [JobSpans("job-1", tracing) for tracing in tracings]
        for one in self.spans:
            one.belongs_to(JOB.traceparent)

    def commit(self, *events: Event, by: int = 0) -> str:
        traceparent = self.spans[by].of_commit()
        for one in self.spans:
            for event in events:
                one.saw(event, traceparent)
        return traceparent

    def recorded(self, replica: int = 0) -> list[ReadableSpan]:
        return list(self.exporters[replica].get_finished_spans())


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


def opened(number: int, at_ms: int) -> Event:
    return ev.GenerationOpened(
        at_ms=at_ms,
        job="job-1",
        number=number,
        attempt=1,
        reason="",
        expected=(),
        min_workers=1,
        failures_left=3,
        join_timeout_s=10,
    )


def formed(number: int, at_ms: int) -> Event:
    generation = Generation(
        job="job-1", number=number, attempt=1, world_size=0, members=(), store_endpoint="", at_ms=at_ms, mesh={}
    )
    return ev.GenerationFormed(generation=generation)


def broken(number: int, at_ms: int) -> Event:
    return ev.GenerationBroken(
        at_ms=at_ms,
        number=number,
        cause="worker_exited",
        worker="w1",
        rank=1,
        category=FailureCategory.SIGNAL,
        message="",
    )


def stepped(generation: int, at_ms: int) -> Event:
    return ev.StepRecorded(
        at_ms=at_ms,
        generation=generation,
        step=11,
        sample_from=0,
        sample_to=1,
        epoch=0,
        loss=1.0,
        fingerprint="",
        why="generation",
    )


def closed(at_ms: int) -> Event:
    return ev.Closed(
        at_ms=at_ms,
        generation=2,
        outcome="Failed",
        category=FailureCategory.SIGNAL,
        reason="",
        message="",
        attempt=1,
    )


def parent(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def id_of(traceparent: str) -> str:
    context = trace.parse(traceparent)
    assert context is not None
    return context.span_id


def test_a_recovery_spans_from_the_break_to_the_next_step(replicas: Replicas) -> None:
    replicas.commit(opened(1, 1_000))
    first = replicas.commit(formed(1, 3_000))
    replicas.commit(stepped(1, 3_500))
    broke = replicas.commit(broken(1, 5_000), opened(2, 5_000))
    again = replicas.commit(formed(2, 6_000))
    # The first step is reported to the other replica, which has seen the break all the same.
    replicas.commit(stepped(2, 7_000), by=1)
    replicas.commit(stepped(2, 8_000))
    forming, forming_again = replicas.recorded()
    (recovery,) = replicas.recorded(1)
    assert [one.name for one in (forming, forming_again, recovery)] == ["form generation", "form generation", "recover"]
    assert (parent(forming), parent(recovery), parent(forming_again)) == (JOB.span_id, JOB.span_id, id_of(broke))
    for span, traceparent in ((forming, first), (forming_again, again), (recovery, broke)):
        assert span.context is not None
        assert f"{span.context.span_id:016x}" == id_of(traceparent), "what it leads to finds it"
    assert (forming.start_time, forming.end_time) == (1_000_000_000, 3_000_000_000)
    assert (recovery.start_time, recovery.end_time) == (5_000_000_000, 7_000_000_000)
    assert dict(recovery.attributes or {}) == {
        "distroml.job": "job-1",
        "distroml.generation": 1,
        "distroml.cause": "worker_exited",
        "distroml.worker": "w1",
    }


def test_a_recovery_that_comes_to_nothing_has_failed(replicas: Replicas) -> None:
    replicas.commit(broken(1, 5_000))
    replicas.commit(broken(2, 6_000))
    replicas.commit(closed(9_000))
    first, second, closing = replicas.recorded()
    assert (first.name, second.name, closing.name) == ("recover", "recover", "close attempt")
    assert first.status.status_code is second.status.status_code is StatusCode.ERROR
    assert (second.start_time, second.end_time) == (6_000_000_000, 9_000_000_000)
    assert replicas.recorded(1) == []


def test_what_breaks_for_the_last_time_is_closed_and_not_recovered(replicas: Replicas) -> None:
    replicas.commit(broken(1, 5_000), closed(5_000))
    assert [span.name for span in replicas.recorded()] == ["close attempt"]


def test_without_the_job_s_trace_nothing_is_recorded_and_nothing_fails() -> None:
    exporter = InMemorySpanExporter()
    spans = JobSpans("job-1", Tracing("rendezvous", [SimpleSpanProcessor(exporter)]))
    spans.belongs_to("noise")
    assert spans.of_commit() == ""
    for event in (opened(1, 1), formed(1, 2), broken(1, 3), stepped(2, 4), closed(5)):
        spans.saw(event, "")
    assert exporter.get_finished_spans() == ()
