from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from distroml.observability import trace
from distroml.observability.tracing import Tracing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def test_a_context_comes_back_from_its_header() -> None:
    context = trace.fresh()
    assert trace.parse(context.traceparent) == context
    assert context.child().trace_id == context.trace_id
    assert context.child().span_id != context.span_id


@pytest.mark.parametrize(
    ("header", "sampled"),
    [(f"00-{TRACE}-{SPAN}-01", True), (f"00-{TRACE}-{SPAN}-00", False), (f"cc-{TRACE}-{SPAN}-01-more", True)],
)
def test_headers_of_the_standard_are_read(header: str, sampled: bool) -> None:
    assert trace.parse(header) == trace.TraceContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "noise",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
    ],
)
def test_malformed_headers_start_a_new_trace(header: str) -> None:
    assert trace.parse(header) is None


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    return Tracing("scheduler", [SimpleSpanProcessor(exporter)])


def test_spans_continue_the_trace_of_their_parent(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    above = trace.TraceContext(TRACE, SPAN)
    with tracing.span("outer", parent=above, attributes={"job": "job-1"}):
        outer = trace.current()
        with tracing.span("inner"):
            inner = trace.current()
    assert trace.current() is None
    assert outer is not None
    assert inner is not None
    assert outer.trace_id == inner.trace_id == TRACE
    first, second = exporter.get_finished_spans()
    assert (first.name, second.name) == ("inner", "outer")
    assert first.parent is not None
    assert f"{first.parent.span_id:016x}" == outer.span_id
    assert second.parent is not None
    assert f"{second.parent.span_id:016x}" == SPAN
    assert second.resource.attributes["service.name"] == "scheduler"


def test_a_span_left_by_an_exception_has_failed(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(RuntimeError), tracing.span("outer"):
        raise RuntimeError
    assert exporter.get_finished_spans()[0].status.status_code is StatusCode.ERROR


def test_what_is_asked_over_and_over_is_not_recorded(tracing: Tracing, exporter: InMemorySpanExporter) -> None:
    with trace.use(trace.unsampled()), tracing.span("poll"):
        inside = trace.current()
    assert inside is not None
    assert not inside.sampled
    assert exporter.get_finished_spans() == ()


def test_without_a_parent_a_trace_begins(tracing: Tracing) -> None:
    with tracing.span("a"):
        one = trace.current()
    with tracing.span("b"):
        two = trace.current()
    assert one is not None
    assert two is not None
    assert one.trace_id != two.trace_id
