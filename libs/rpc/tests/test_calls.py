"""Calls over a real socket: who calls, what goes wrong, how long it may take."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from distroml.api.common.v1 import replay_pb2 as pb
from distroml.events import Rejection
from distroml.eventstore import Fenced, WrongExpectedVersion
from distroml.observability import trace
from distroml.rpc import RemoteError, Service, caller, calling, connect, system_caller
from distroml.rpc.errors import InvalidArgument, NotFound
from distroml.rpc.serving import UNARY_DEADLINE_S
from libs.rpc.tests.conftest import TOKEN, Serve
from libs.rpc.tests.echo import NAME, Echo, EchoStub, add_to_server


class Wire:
    def __init__(self, service: Service, echo: Echo, stub: EchoStub) -> None:
        self.service, self.echo, self.stub = service, echo, stub


@pytest.fixture
async def wire(serve: Serve) -> AsyncIterator[Wire]:
    echo = Echo()
    service = await serve(lambda service: service.add(add_to_server, echo, NAME))
    async with connect(service.endpoint, TOKEN, actor="ann", project="vision") as channel:
        yield Wire(service, echo, EchoStub(channel))


def state(text: str = "x", **fields: Any) -> pb.StreamState:
    return pb.StreamState(json=text, **fields)


async def each(*texts: str) -> AsyncIterator[pb.StreamState]:
    for text in texts:
        yield state(text)


async def test_every_kind_of_call_goes_through(wire: Wire) -> None:
    assert (await wire.stub.unary(state("a"))).json == "a"
    assert [s.version async for s in wire.stub.down(state(version=3))] == [0, 1, 2]
    assert (await wire.stub.up(each("a", "b"))).json == "a+b"
    assert [s.json async for s in wire.stub.both(each("a", "b"))] == ["a", "b"]


async def test_a_stream_can_be_read_and_written_by_hand(wire: Wire) -> None:
    call = wire.stub.both()
    for text in ("a", "b"):
        await call.write(state(text))
        assert (await call.read()).json == text
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_writing_to_a_stream_that_has_ended_does_not_hang(wire: Wire) -> None:
    def fail(text: str) -> str:
        raise NotFound("NoSuchJob", "there is no job x")

    wire.echo.answer = fail
    call = wire.stub.both()
    async with asyncio.timeout(5):
        await call.write(state("a"))
        with pytest.raises(RemoteError, match="no job x"):
            await call.read()
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(state("b"))


async def test_the_servicer_knows_who_calls(wire: Wire) -> None:
    with trace.use(span := trace.fresh()):
        await wire.stub.unary(state())
        await wire.stub.up(each("a"))
    for who in wire.echo.seen:
        assert (who.actor, who.project) == ("ann", "vision")
        assert who.request_id.startswith("req-")
        assert who.correlation_id == who.request_id
        assert trace.parse(who.traceparent).trace_id == span.trace_id
    assert wire.echo.seen[0].request_id != wire.echo.seen[1].request_id


async def test_a_call_made_while_serving_one_belongs_to_the_same_request(wire: Wire) -> None:
    async with connect(wire.service.endpoint, TOKEN) as channel:
        outer = system_caller(actor="bob", project="nlp")
        with calling(outer):
            await EchoStub(channel).unary(state())
    who = wire.echo.seen[0]
    assert (who.actor, who.project, who.correlation_id) == ("bob", "nlp", outer.correlation_id)


async def test_outside_a_call_the_service_acts_of_itself() -> None:
    assert caller().actor == "system"


@pytest.mark.parametrize("kind", ["unary", "down", "up", "both"])
async def test_a_wrong_token_is_refused_with_what_to_do(wire: Wire, kind: str) -> None:
    async with connect(wire.service.endpoint, "another") as channel:
        stub = EchoStub(channel)
        with pytest.raises(RemoteError, match="DISTROML_DATA") as refused:
            await outcome(stub, kind)
    assert (refused.value.status, refused.value.reason) == (StatusCode.UNAUTHENTICATED, "WrongToken")
    assert wire.echo.seen == []


async def test_a_call_without_a_token_is_refused(wire: Wire) -> None:
    async with grpc.aio.insecure_channel(wire.service.endpoint) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await EchoStub(channel).unary(state())
    assert refused.value.code() is StatusCode.UNAUTHENTICATED


async def outcome(stub: EchoStub, kind: str) -> Any:
    match kind:
        case "unary":
            return await stub.unary(state())
        case "up":
            return await stub.up(each("a"))
        case "down":
            return [s async for s in stub.down(state(version=1))]
        case _:
            return [s async for s in stub.both(each("a"))]


@pytest.mark.parametrize("kind", ["unary", "down", "up", "both"])
@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (NotFound("NoSuchJob", "there is no job x", job="x"), StatusCode.NOT_FOUND, "NoSuchJob"),
        (Rejection("AlreadyDone", "it is over", job="x"), StatusCode.FAILED_PRECONDITION, "AlreadyDone"),
        (WrongExpectedVersion("scheduler/job/x", 1, 2), StatusCode.ABORTED, "WrongExpectedVersion"),
        (Fenced("fences/x"), StatusCode.FAILED_PRECONDITION, "StaleGeneration"),
        (ZeroDivisionError("secret"), StatusCode.INTERNAL, "Unexpected"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_what_a_servicer_raises_arrives(
    wire: Wire, kind: str, error: Exception, code: StatusCode, reason: str
) -> None:
    def fail(text: str) -> str:
        raise error

    wire.echo.answer = fail
    with pytest.raises(RemoteError) as raised:
        await outcome(wire.stub, kind)
    assert (raised.value.status, raised.value.reason) == (code, reason)
    assert "secret" not in raised.value.message
    if reason in ("NoSuchJob", "AlreadyDone"):
        assert raised.value.metadata == {"job": "x"}


async def test_every_wrong_field_arrives(wire: Wire) -> None:
    wrong = [("spec.workers.min", "is 0; at least 1"), ("spec.name", "is empty")]

    def fail(text: str) -> str:
        raise InvalidArgument(wrong)

    wire.echo.answer = fail
    with pytest.raises(RemoteError) as raised:
        await wire.stub.unary(state())
    assert raised.value.violations == tuple(wrong)
    assert "spec.workers.min: is 0" in raised.value.message


async def test_an_unforeseen_failure_is_logged_with_its_trace(wire: Wire, caplog: pytest.LogCaptureFixture) -> None:
    def fail(text: str) -> str:
        raise ZeroDivisionError

    wire.echo.answer = fail
    with pytest.raises(RemoteError):
        await wire.stub.unary(state())
    assert "ZeroDivisionError" in caplog.text


async def test_huge_error_texts_are_cut_and_still_arrive(wire: Wire) -> None:
    def fail(text: str) -> str:
        raise NotFound("NoSuchJob", "x" * 100_000 + "\udcff", job="y" * 10_000)

    wire.echo.answer = fail
    with pytest.raises(RemoteError) as raised:
        await wire.stub.unary(state())
    assert raised.value.reason == "NoSuchJob"
    assert len(raised.value.message) < 4096


async def test_a_message_past_the_cap_is_a_clear_error(wire: Wire) -> None:
    big = "x" * (5 * 1024 * 1024)
    with pytest.raises(RemoteError, match="past the cap") as sent:
        await wire.stub.unary(state(big))
    assert sent.value.reason == "MessageTooLarge"
    wire.echo.answer = lambda text: big
    with pytest.raises(RemoteError, match="past the cap"):
        await wire.stub.unary(state())
    wire.echo.answer = lambda text: text
    assert (await wire.stub.unary(state("still here"))).json == "still here"


async def test_an_unknown_method_says_so(wire: Wire) -> None:
    with pytest.raises(RemoteError, match="older release"):
        await wire.stub.nothing(state())


async def test_a_caller_that_waits_only_so_long_gets_its_deadline(wire: Wire) -> None:
    with pytest.raises(RemoteError) as late:
        await wire.stub.unary(state(stream="wait"), timeout=0.1)
    assert late.value.reason == "DeadlineExceeded"
    assert late.value.is_transient


async def test_a_nested_call_gets_no_more_time_than_its_cause_has_left(wire: Wire) -> None:
    started = asyncio.get_running_loop().time()
    with calling(system_caller(), deadline_s=0.2), pytest.raises(RemoteError) as late:
        await wire.stub.unary(state(stream="wait"))
    assert late.value.status is StatusCode.DEADLINE_EXCEEDED
    assert asyncio.get_running_loop().time() - started < 5


async def test_a_call_without_a_deadline_is_ended_by_the_service(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    assert UNARY_DEADLINE_S > 0.1
    monkeypatch.setattr("distroml.rpc.serving.UNARY_DEADLINE_S", 0.1)
    async with grpc.aio.insecure_channel(wire.service.endpoint) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await EchoStub(channel).unary(state(stream="wait"), metadata=(("authorization", f"Bearer {TOKEN}"),))
    assert late.value.code() is StatusCode.DEADLINE_EXCEEDED


async def test_nobody_there_is_unreachable() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{held.getsockname()[1]}"
        async with connect(endpoint, TOKEN) as channel:
            for kind in ("unary", "down", "up", "both"):
                with pytest.raises(RemoteError) as raised:
                    await outcome(EchoStub(channel), kind)
                assert raised.value.reason == "Unreachable"
                assert endpoint in raised.value.message


async def test_a_caller_that_goes_away_ends_the_servicers_generator(wire: Wire) -> None:
    call = wire.stub.down(state(version=1, stream="wait"))
    assert (await call.read()).version == 0
    call.cancel()
    async with asyncio.timeout(5):
        while not wire.echo.ended:
            await asyncio.sleep(0.01)


async def test_too_long_metadata_is_named(wire: Wire) -> None:
    async with connect(wire.service.endpoint, TOKEN, actor="a" * 300) as channel:
        with pytest.raises(RemoteError, match="distroml-actor: is longer"):
            await EchoStub(channel).unary(state())


async def test_health_needs_no_token_and_reflection_does(wire: Wire) -> None:
    async with grpc.aio.insecure_channel(wire.service.endpoint) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.aio.AioRpcError):
            [answer async for answer in reflection.ServerReflectionInfo(iter([ask]))]
    async with connect(wire.service.endpoint, TOKEN) as channel:
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = [answer async for answer in reflection.ServerReflectionInfo(iter([ask]))]
    assert NAME in [service.name for service in answers[0].list_services_response.service]


GARBAGE = {
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "random": bytes(range(256)) * 64,
    "preface then noise": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500,
    "nothing": b"",
}


@asynccontextmanager
async def dial(endpoint: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = endpoint.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_on_the_port_hurts_nobody(wire: Wire, garbage: bytes) -> None:
    async with dial(wire.service.endpoint) as (_, writer):
        writer.write(garbage)
        await writer.drain()
        assert (await wire.stub.unary(state("a"))).json == "a"
    assert (await wire.stub.unary(state("b"))).json == "b"


@pytest.mark.parametrize("kind", ["unary", "down", "up", "both"])
async def test_garbage_inside_a_message_is_refused(wire: Wire, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connect(wire.service.endpoint, TOKEN) as channel:
        way = {"unary": "unary_unary", "down": "unary_stream", "up": "stream_unary", "both": "stream_stream"}[kind]
        send: Any = getattr(channel, way)(f"/{NAME}/{kind}", lambda raw: raw, lambda raw: raw)
        noise = b"\xff\xff\xff\xff"
        call = send(iter([noise]) if kind in ("up", "both") else noise)
        with pytest.raises(RemoteError) as raised:
            await (call.read() if kind in ("down", "both") else call)
    assert (raised.value.status, raised.value.reason) == (StatusCode.INVALID_ARGUMENT, "Garbled")
    assert not [record for record in caplog.records if record.exc_info], "noise from outside fills no log"
    assert (await wire.stub.unary(state("a"))).json == "a"
