"""Spans of calls, as a receiver of OTLP gets them from a real service."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.proto.trace.v1.trace_pb2 import Status as SpanStatus

from distroml.api.common.v1 import replay_pb2 as pb
from distroml.events import Context, Position, Recorded
from distroml.observability import trace
from distroml.observability.tracing import Tracing
from distroml.rpc import RemoteError, Service, ServiceSettings, SettingsError, connect, system_caller
from distroml.rpc.errors import NotFound
from distroml.rpc.receiver import survey
from distroml.rpc.spans import processing
from libs.observability.tests.collector import Collector, attributes, collector
from libs.rpc.tests.conftest import TOKEN
from libs.rpc.tests.echo import NAME, Echo, EchoStub, add_to_server
from libs.rpc.tests.test_service import get, until

METHOD = f"{NAME}/unary"


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as kept:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield kept


@pytest.fixture
async def service(settings: ServiceSettings, receiver: Collector) -> AsyncIterator[Service]:
    async with Service(replace(settings, otel={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url})) as made:
        yield made


async def test_a_call_is_a_span_on_either_side(service: Service, receiver: Collector) -> None:
    echo = Echo()
    service.add(add_to_server, echo, NAME)
    await service.start()

    def refuse(text: str) -> str:
        raise NotFound("NoSuchJob", "there is no job x")

    def break_(text: str) -> str:
        raise ZeroDivisionError

    async with connect(service.endpoint, TOKEN, actor="ann", tracing=service.tracing) as channel:
        stub = EchoStub(channel)
        for answer in (echo.answer, refuse, break_):
            echo.answer = answer
            with service.tracing.span("above"), contextlib.suppress(RemoteError):
                await stub.unary(pb.StreamState(json="x"))
        with trace.use(above := trace.fresh()):
            assert [each.version async for each in stub.down(pb.StreamState(version=0))] == []
    assert echo.seen[-1].traceparent == above.traceparent, "a stream has the context and no span"
    await service.drain()

    servers = [one for one in receiver.spans if one.kind == Span.SPAN_KIND_SERVER]
    clients = [one for one in receiver.spans if one.kind == Span.SPAN_KIND_CLIENT]
    assert [one.name for one in servers] == [one.name for one in clients] == [METHOD] * 3
    for server, client, who in zip(servers, clients, echo.seen, strict=False):
        assert server.parent_span_id == client.span_id
        assert server.trace_id == client.trace_id
        assert trace.parse(who.traceparent) == trace.TraceContext(server.trace_id.hex(), server.span_id.hex())
    codes = [grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL]
    for span in (*servers, *clients):
        told = attributes(span)
        assert (told["rpc.system"], told["rpc.service"], told["rpc.method"]) == ("grpc", NAME, "unary")
    assert [attributes(one)["rpc.grpc.status_code"] for one in servers] == [code.value[0] for code in codes]
    assert [attributes(one)["rpc.grpc.status_code"] for one in clients] == [code.value[0] for code in codes]
    assert attributes(servers[0])["distroml.actor"] == "ann"
    host, _, port = service.endpoint.rpartition(":")
    assert (attributes(clients[0])["server.address"], attributes(clients[0])["server.port"]) == (host, int(port))
    error = SpanStatus.STATUS_CODE_ERROR
    assert [one.status.code == error for one in servers] == [False, False, True], "a refusal is an answer"
    assert [one.status.code == error for one in clients] == [False, True, True]


async def test_a_receiver_that_is_away_shows_in_health_and_holds_up_nothing(
    service: Service, receiver: Collector
) -> None:
    receiver.status = 400
    await service.start()
    with service.tracing.span("lost"):
        pass

    async def status() -> dict[str, object]:
        return json.loads((await get(service, "/healthz"))[1])

    await until(lambda: "traces" in service._ill)
    assert (await status())["status"] == "DEGRADED"
    receiver.status = 200
    with service.tracing.span("kept"):
        pass
    await until(lambda: "traces" not in service._ill)
    assert (await status())["status"] == "SERVING"


async def test_what_spans_cannot_do_ends_the_start(settings: ServiceSettings) -> None:
    with pytest.raises(SettingsError, match="OTEL_TRACES_EXPORTER"):
        replace(settings, otel={"OTEL_TRACES_EXPORTER": "zipkin"})
    grpc_ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(SettingsError, match="pip install"):
        Service(replace(settings, otel=grpc_))


def test_the_environment_s_variables_are_read_and_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    environ = {
        "DISTROML_DATA": str(tmp_path),
        "DISTROML_DEPLOYMENT": "dep-1",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=hidden",
    }
    settings = ServiceSettings.read(environ, "scheduler")
    assert settings.otel == {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=hidden"}
    assert "hidden" not in repr(settings)
    with pytest.raises(SettingsError, match="OTEL_BSP_MAX_QUEUE_SIZE"):
        ServiceSettings.read(environ | {"OTEL_BSP_MAX_QUEUE_SIZE": "0"}, "scheduler")


async def test_a_reaction_stands_under_what_wrote_its_event(service: Service, receiver: Collector) -> None:
    above = trace.fresh()
    context = Context(
        deployment="dep-1",
        project="p",
        actor="a",
        causation_id="",
        correlation_id="",
        time_ms=1,
        traceparent=above.traceparent,
    )
    recorded = Recorded(
        id="evt-1",
        type="rendezvous.Closed",
        schema=1,
        public=True,
        data=b"",
        stream="rendezvous/job/job-1",
        version=1,
        position=Position("dep-1", 1),
        context=context,
    )
    with processing(service.tracing, "scheduler.rendezvous", recorded):
        assert system_caller().traceparent.split("-")[1] == above.trace_id, "what it commits belongs to the trace"
    service.tracing.close()
    span = receiver.named("process scheduler.rendezvous")
    assert span.kind == Span.SPAN_KIND_CONSUMER
    assert span.parent_span_id.hex() == above.span_id
    told = attributes(span)
    assert told["messaging.operation.type"] == "process"
    assert told["messaging.destination.name"] == "rendezvous/job"
    assert told["messaging.consumer.group.name"] == "scheduler.rendezvous"
    assert (told["messaging.message.id"], told["distroml.job"]) == ("evt-1", "job-1")


def test_outside_a_trace_nobody_claims_one() -> None:
    assert system_caller().traceparent == ""
    with Tracing("scheduler").span("here"):
        here = trace.current()
        assert here is not None
        assert system_caller().traceparent == here.traceparent


class Taker(grpc.GenericRpcHandler):
    """Takes spans by gRPC, from whoever brings a key."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def export(request: bytes, context: grpc.ServicerContext) -> bytes:
            if ("x-key", "k") not in [(key, value) for key, value in context.invocation_metadata()]:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "no key")
            return request

        if handler_call_details.method != "/opentelemetry.proto.collector.trace.v1.TraceService/Export":
            return None
        return grpc.unary_unary_rpc_method_handler(export)


def test_who_takes_no_spans_by_grpc_is_told_why() -> None:
    server = grpc.server(ThreadPoolExecutor(1), handlers=(Taker(),))
    other = grpc.server(ThreadPoolExecutor(1))
    ports = [one.add_insecure_port("127.0.0.1:0") for one in (server, other)]

    def why(port: int, headers: str = "x-key=k") -> str | None:
        where = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_HEADERS": headers}
        return survey({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", **where})

    for one in (server, other):
        one.start()
    try:
        assert why(ports[0]) is None
        assert "refuses our credentials (UNAUTHENTICATED); OTEL_EXPORTER_OTLP_HEADERS" in (why(ports[0], "a=b") or "")
        assert "what answers there takes no spans; check host and port" in (why(ports[1]) or "")
    finally:
        for one in (server, other):
            one.stop(None).wait()
    assert "see that the receiver of spans runs there" in (why(ports[0]) or "")
