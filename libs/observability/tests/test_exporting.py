from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from distroml.observability import names, trace
from distroml.observability.destination import Destination, destination, queue_size
from distroml.observability.exporting import Exporting, exporting
from distroml.observability.metrics import REGISTRY
from distroml.observability.tracing import Tracing, resource
from libs.observability.tests.collector import Collector, attributes, collector

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as kept:
        monkeypatch.setenv(ENDPOINT, kept.url)
        yield kept


def count(why: str) -> float:
    return REGISTRY.get_sample_value(names.SPANS_DROPPED, {names.LABEL_WHY: why}) or 0.0


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Destination.NONE),
        ({ENDPOINT: "http://x:4318"}, Destination.OTLP_HTTP),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4318/v1/traces"}, Destination.OTLP_HTTP),
        ({ENDPOINT: "http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, Destination.OTLP_GRPC),
        (
            {
                ENDPOINT: "http://x",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            Destination.OTLP_HTTP,
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, Destination.OTLP_HTTP),
        ({"OTEL_TRACES_EXPORTER": "jaeger", ENDPOINT: "http://x"}, Destination.JAEGER_THRIFT),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://x"}, Destination.NONE),
        ({"OTEL_SDK_DISABLED": "TRUE", ENDPOINT: "http://x"}, Destination.NONE),
    ],
)
def test_the_standard_variables_choose_where_spans_go(environ: dict[str, str], expected: Destination) -> None:
    assert destination(environ) is expected


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {ENDPOINT: "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
    ],
)
def test_what_cannot_be_had_is_said_by_the_variable_s_name(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"OTEL_.*use "):
        destination(environ)


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_a_queue_has_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="OTEL_BSP_MAX_QUEUE_SIZE"):
        queue_size({"OTEL_BSP_MAX_QUEUE_SIZE": text})


def test_an_exporter_that_is_not_installed_is_named_with_its_package() -> None:
    with pytest.raises(ValueError, match="pip install opentelemetry-exporter-otlp-proto-grpc"):
        exporting({ENDPOINT: "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


def test_spans_arrive_with_what_the_process_is(receiver: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=lab,service.namespace=own")
    made = exporting({ENDPOINT: receiver.url})
    assert made is not None
    tracing = Tracing("scheduler", [made], deployment="dep-1")
    with tracing.span("outer", attributes={"n": 1}):
        context = trace.current()
    assert context is not None
    late = context.child()
    worker = resource("worker", instance="job-1.1.n.0")
    tracing.record("late", late, parent=context, start_ns=2_000, end_ns=1_000, error="broke", of=worker)
    tracing.close()
    outer, recorded = receiver.named("outer"), receiver.named("late")
    assert attributes(outer) == {"n": 1}
    assert recorded.span_id.hex() == late.span_id
    assert recorded.parent_span_id == outer.span_id
    assert recorded.trace_id == outer.trace_id
    assert (recorded.start_time_unix_nano, recorded.end_time_unix_nano) == (2_000, 2_000), "it ends before it began"
    assert recorded.status.message == "broke"
    own, of_worker = sorted(receiver.resources, key=lambda one: one["service.name"])
    assert own["service.name"] == "scheduler"
    assert own["distroml.deployment"] == "dep-1"
    assert own["deployment.environment.name"] == "lab"
    assert own["service.namespace"] == "own", "the variable wins"
    assert own["service.instance.id"]
    assert of_worker["service.instance.id"] == "job-1.1.n.0"


class Stuck(SpanExporter):
    """An exporter whose receiver accepts and never answers."""

    def __init__(self) -> None:
        self.entered, self.free = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.free.wait()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


def test_a_receiver_that_hangs_costs_nobody_time_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    stuck, before, unsent = Stuck(), count("full"), count("unsent")
    made = Exporting(stuck, queue=4)
    tracing = Tracing("scheduler", [made])
    with tracing.span("first"):
        pass
    assert stuck.entered.wait(10)
    for _ in range(10):
        with tracing.span("more"):
            pass
    assert count("full") - before == 7, "one is on its way, three wait"
    # Neither the queue nor the batch comes free; closing gives up all the same.
    tracing.close(timeout_s=0.1)
    with tracing.span("late"):
        pass
    made.abandon()
    assert count("unsent") - unsent == 5
    stuck.free.set()


def test_a_receiver_that_refuses_is_told_once_and_forgiven(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    receiver.status, before, told = 400, count("refused"), list[str | None]()
    made = exporting({ENDPOINT: receiver.url})
    assert made is not None
    made.trouble = told.append
    tracing = Tracing("scheduler", [made])
    for _ in range(2):
        with tracing.span("lost"):
            pass
        made.force_flush()
    assert count("refused") - before == 2
    assert caplog.text.count("cannot be exported") == 1
    receiver.status = 200
    with tracing.span("kept"):
        pass
    made.force_flush()
    tracing.close()
    assert receiver.named("kept")
    assert [why is None for why in told] == [False, True]


def test_a_receiver_that_is_back_is_noticed_without_another_span(receiver: Collector) -> None:
    receiver.status, told = 400, queue.Queue[str | None]()
    made = Exporting(OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces"), trouble=told.put, probe_s=0.05)
    tracing = Tracing("scheduler", [made])
    with tracing.span("lost"):
        pass
    made.force_flush()
    assert told.get(timeout=20)
    receiver.status = 200
    assert told.get(timeout=20) is None
    tracing.close()


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_SAMPLER", "parentbased_always_off")]
)
def test_what_is_not_sampled_is_passed_on_as_such(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    made = exporting({ENDPOINT: receiver.url})
    assert made is not None
    tracing = Tracing("scheduler", [made])
    with tracing.span("unseen"):
        context = trace.current()
    assert context is not None
    assert not context.sampled
    assert trace.parse(context.traceparent) == context
    tracing.record("unseen", context.child(), parent=context, start_ns=1, end_ns=2)
    tracing.close()
    assert receiver.requests == 0
