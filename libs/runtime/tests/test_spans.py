"""Spans of a worker: under the generation's, once each, and through a link that never waits."""

from __future__ import annotations

import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from distroml.observability import names, trace
from distroml.runtime.elastic import World
from distroml.runtime.link import NullLink
from distroml.runtime.link.outbox import MAX_SPANS, Outbox
from distroml.runtime.otel import LinkExporter, job_context
from distroml.runtime.spans import WorkerSpans
from distroml.workerlink import SaveBegun, Span, StepSample, decode_to_agent, encode, environment

ABOVE = trace.TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


class Kept(NullLink):
    """A link whose spans the test looks at."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @property
    def attached(self) -> bool:
        return True

    def span(self, span: Span) -> None:
        self.spans.append(span)


def world(traceparent: str) -> World:
    return World(
        generation=3,
        rank=1,
        world_size=2,
        local_rank=0,
        device=torch.device("cpu"),
        store=None,
        prefix="",
        traceparent=traceparent,
    )


def test_a_span_stands_under_its_generation_s() -> None:
    link = Kept()
    spans = WorkerSpans(link, world(ABOVE.traceparent))
    opened = spans.begin(names.SPAN_CHECKPOINT, step=10, start_ns=5)
    assert opened is not None
    spans.end(opened, error="full")
    (span,) = link.spans
    assert (span.trace_id, span.parent_span_id, span.span_id) == (
        ABOVE.trace_id,
        ABOVE.span_id,
        opened.context.span_id,
    )
    assert opened.traceparent == f"00-{ABOVE.trace_id}-{span.span_id}-01"
    assert (span.name, span.start_ns, span.error) == ("checkpoint", 5, "full")
    assert span.attributes == {"distroml.generation": 3, "distroml.rank": 1, "distroml.step": 10}
    assert decode_to_agent(encode(span)[4:]) == span


@pytest.mark.parametrize("header", ["", "noise", f"00-{ABOVE.trace_id}-{ABOVE.span_id}-00"])
def test_without_a_sampled_trace_there_is_nothing(header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.TRACE_STEPS, "1")
    link = Kept()
    spans = WorkerSpans(link, world(header))
    spans.end(spans.begin(names.SPAN_STEP))
    assert not spans.every_step
    assert link.spans == []


def test_every_step_is_traced_where_the_job_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not WorkerSpans(Kept(), world(ABOVE.traceparent)).every_step
    monkeypatch.setenv(environment.TRACE_STEPS, "1")
    assert WorkerSpans(Kept(), world(ABOVE.traceparent)).every_step


def span(number: int) -> Span:
    return Span(trace_id="1", span_id=str(number), parent_span_id="", name="n", start_ns=0, end_ns=1)


def test_spans_push_out_spans_and_nothing_else() -> None:
    outbox = Outbox()
    save = SaveBegun(generation=1, step=10, world_size=2)
    outbox.put(save)
    outbox.sample(StepSample(generation=1, step=1, total_steps=2, at_ms=0, step_s=0.1))
    for number in range(MAX_SPANS + 3):
        outbox.span(span(number))
    assert outbox.take(samples=True) == save
    first = outbox.take(samples=True)
    assert isinstance(first, Span)
    assert (first.span_id, first.dropped) == ("3", 3)
    # Cut off on its way: lost, counted, and not sent twice.
    outbox.reconnected()
    second = outbox.take(samples=True)
    assert isinstance(second, Span)
    assert (second.span_id, second.dropped) == ("4", 4)
    assert not outbox.empty


def test_a_script_s_own_spans_go_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.TRACEPARENT, ABOVE.traceparent)
    link, provider = Kept(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(LinkExporter(link)))
    with (
        pytest.raises(RuntimeError),
        provider.get_tracer("train").start_as_current_span(
            "tokenize", context=job_context(), attributes={"files": 3, "names": ["a", "b"], "text": "x" * 10_000}
        ),
    ):
        raise RuntimeError("no such file")
    provider.shutdown()
    (sent,) = link.spans
    assert (sent.trace_id, sent.parent_span_id, sent.name) == (ABOVE.trace_id, ABOVE.span_id, "tokenize")
    # Of any length in the script; a span is a small message.
    assert sent.attributes == {"files": 3, "names": "('a', 'b')", "text": "x" * 1000}
    assert "no such file" in sent.error
    assert sent.end_ns >= sent.start_ns
