"""The life of a service: starting, crashing parts, draining, ending."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from distroml.api.common.v1 import replay_pb2 as pb
from distroml.rpc import Backoff, PortTaken, RemoteError, Service, ServiceSettings, SettingsError, connect
from distroml.rpc import service as service_module
from distroml.statestore.etcd import EtcdSettings
from libs.rpc.tests.conftest import TOKEN, Serve
from libs.rpc.tests.echo import NAME, Echo, EchoStub, add_to_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def until(condition: Callable[[], Any], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


async def health(service: Service, name: str = "") -> int:
    async with grpc.aio.insecure_channel(service.endpoint) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status


async def http(port: int, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    raw = await reader.read()
    writer.close()
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body


async def get(service: Service, path: str) -> tuple[int, bytes]:
    return await http(service.metrics_port, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def test_a_crashing_task_is_restarted_and_shows_in_health(serve: Serve) -> None:
    runs: list[int] = []
    release = asyncio.Event()

    async def work() -> None:
        runs.append(1)
        if not release.is_set():
            raise RuntimeError("out of cheese")
        await asyncio.Event().wait()

    service = await serve(lambda service: service.background("cycle", work, backoff=Backoff(0.01, 0.05)))
    await until(lambda: len(runs) >= 3)
    assert await health(service, "cycle") == NOT_SERVING
    assert await health(service) == SERVING
    status, body = await get(service, "/healthz")
    told = msgspec.json.decode(body)
    assert (status, told["status"]) == (200, "DEGRADED")
    assert told["parts"]["cycle"]["why"] == "RuntimeError: out of cheese"
    release.set()
    async with asyncio.timeout(10):
        while await health(service, "cycle") != SERVING:
            await asyncio.sleep(0.05)
    status, body = await get(service, "/metrics")
    assert b'distroml_task_restarts_total{task="cycle"}' in body


async def test_a_task_that_returns_is_done(serve: Serve) -> None:
    runs: list[int] = []

    async def work() -> None:
        runs.append(1)

    service = await serve(lambda service: service.background("once", work))
    await until(lambda: runs)
    assert await health(service, "once") == SERVING
    await service.drain()
    assert runs == [1]


async def test_a_part_can_say_that_it_is_stuck(serve: Serve) -> None:
    service = await serve()
    service.report("reactor", "scheduler/job/x is held at version 3")
    await asyncio.sleep(0)
    assert await health(service, "reactor") == NOT_SERVING
    assert b"held at version 3" in (await get(service, "/healthz"))[1]
    assert b'distroml_service_part_up{part="reactor"} 0.0' in (await get(service, "/metrics"))[1]
    service.report("reactor", None)
    await asyncio.sleep(0)
    assert await health(service, "reactor") == SERVING


async def test_metrics_count_calls_by_outcome(serve: Serve) -> None:
    echo = Echo()
    service = await serve(lambda service: service.add(add_to_server, echo, NAME))
    async with connect(service.endpoint, TOKEN) as channel:
        await EchoStub(channel).unary(pb.StreamState())
    status, body = await get(service, "/metrics")
    assert status == 200
    line = f'distroml_rpc_server_call_duration_seconds_count{{code="OK",method="/{NAME}/unary"}}'
    assert line.encode() in body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (bytes(range(1, 256)) + b"\r\n\r\n", 405),
        (b"GET /" + b"x" * 100_000 + b"\r\n\r\n", 0),
    ],
    ids=["path", "method", "noise", "long"],
)
async def test_noise_on_the_metrics_port_is_refused(serve: Serve, request_: bytes, status: int) -> None:
    service = await serve()
    try:
        answered, _ = await http(service.metrics_port, request_)
    except ConnectionError:
        answered = 0
    assert answered == status
    assert (await get(service, "/healthz"))[0] == 200


async def test_a_silent_metrics_client_holds_nobody_up(serve: Serve) -> None:
    service = await serve()
    _, writer = await asyncio.open_connection("127.0.0.1", service.metrics_port)
    assert (await get(service, "/healthz"))[0] == 200
    writer.close()


async def test_a_service_dials_another_as_itself(serve: Serve, settings: ServiceSettings) -> None:
    echo = Echo()
    other = await serve(lambda service: service.add(add_to_server, echo, NAME))
    async with Service(replace(settings, service="checkpoint", peers={"scheduler": other.endpoint})) as service:
        channel = service.dial("scheduler")
        await EchoStub(channel).unary(pb.StreamState())
        with pytest.raises(SettingsError, match="DISTROML_RENDEZVOUS"):
            service.dial("rendezvous")
    assert echo.seen[0].actor == "checkpoint"
    with pytest.raises(grpc.aio.UsageError):
        await EchoStub(channel).unary(pb.StreamState())


async def test_draining_lets_calls_end_and_cuts_streams(serve: Serve) -> None:
    echo, order = Echo(), list[str]()

    def prepare(service: Service) -> None:
        service.add(add_to_server, echo, NAME)
        service.on_drain(lambda: order.append("drain"))
        service.on_close(lambda: order.append("close first opened"))
        service.on_close(lambda: order.append("close last opened"))

    service = await serve(prepare)
    async with connect(service.endpoint, TOKEN) as channel:
        stub = EchoStub(channel)
        stream = stub.down(pb.StreamState(version=1, stream="wait"))
        await stream.read()
        call = asyncio.ensure_future(_await(stub.unary(pb.StreamState(stream="wait", json="kept"))))
        await until(lambda: len(echo.seen) == 2)
        draining = asyncio.ensure_future(service.drain())
        with pytest.raises(RemoteError) as cut:
            await stream.read()
        assert (cut.value.reason, cut.value.is_transient) == ("Draining", True)
        assert not call.done()
        assert order == ["drain"]
        echo.release.set()
        assert (await call).json == "kept"
        await draining
    assert order == ["drain", "close last opened", "close first opened"]
    assert echo.ended


async def _await(call: Any) -> Any:
    return await call


async def test_a_call_that_never_ends_is_ended_after_the_grace(
    settings: ServiceSettings,
) -> None:
    echo = Echo()
    async with Service(replace(settings, drain_s=0.2)) as service:
        service.add(add_to_server, echo, NAME)
        await service.start()
        async with connect(service.endpoint, TOKEN) as channel:
            call = asyncio.ensure_future(_await(EchoStub(channel).unary(pb.StreamState(stream="wait"))))
            await until(lambda: echo.seen)
            async with asyncio.timeout(5):
                await service.drain()
            with pytest.raises(RemoteError) as ended:
                await call
            assert ended.value.is_transient


async def test_what_a_task_closes_when_it_is_cancelled_is_closed_before_the_rest(serve: Serve) -> None:
    order: list[str] = []
    working, cancelled, release, closed = (asyncio.Event() for _ in range(4))

    async def work() -> None:
        try:
            working.set()
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            # A lease that is given back, say.
            await release.wait()
            order.append("task")

    def close() -> None:
        order.append("store")
        closed.set()

    def prepare(service: Service) -> None:
        service.background("work", work)
        service.on_close(close)

    service = await serve(prepare)
    await working.wait()
    draining = asyncio.ensure_future(service.drain())
    await cancelled.wait()
    # Time in which what must not happen would.
    await asyncio.wait([asyncio.ensure_future(closed.wait())], timeout=0.2)
    release.set()
    await draining
    assert order == ["task", "store"]


async def test_a_task_that_does_not_end_is_left_behind_after_its_grace(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    etcd = EtcdSettings(endpoints=("http://e:1",))
    assert etcd.timeout_s < service_module._TASK_GRACE_S, "until then a lease is given back, or cannot be"
    monkeypatch.setattr(service_module, "_TASK_GRACE_S", 0.05)
    working, release = asyncio.Event(), asyncio.Event()
    closed: list[str] = []

    async def work() -> None:
        working.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        closed.append("task")

    def prepare(service: Service) -> None:
        service.background("work", work)
        service.on_close(lambda: closed.append("store"))

    service = await serve(prepare)
    await working.wait()
    async with asyncio.timeout(20):
        await service.drain()
    assert closed == ["store"]
    assert "a background task does not end; it is left behind" in caplog.text
    release.set()
    await until(lambda: "task" in closed)


async def test_a_failing_callback_keeps_nobody_else_from_closing(serve: Serve) -> None:
    closed: list[str] = []

    def fail() -> None:
        raise OSError("disk gone")

    service = await serve()
    service.on_close(lambda: closed.append("store"))
    service.on_close(fail)
    service.on_drain(fail)
    await service.drain()
    assert closed == ["store"]


@pytest.mark.parametrize("which", ["listen", "metrics_listen"])
async def test_a_taken_port_is_named(settings: ServiceSettings, which: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        address = f"127.0.0.1:{held.getsockname()[1]}"
        async with Service(replace(settings, **{which: address})) as service:
            with pytest.raises(PortTaken, match=address):
                await service.start()


async def test_two_services_never_share_a_port(serve: Serve, settings: ServiceSettings) -> None:
    first = await serve()
    async with Service(replace(settings, listen=first.endpoint)) as second:
        with pytest.raises(PortTaken):
            await second.start()


PROGRAM = """
import asyncio, sys
from pathlib import Path
from distroml import observability
from distroml.rpc import Service, ServiceSettings, launch

async def serve():
    more = dict(argument.split("=") for argument in sys.argv[2:])
    settings = ServiceSettings.read({"DISTROML_DATA": sys.argv[1], **more}, "scheduler")
    observability.setup(settings.service, deployment=settings.deployment)
    async with Service(settings) as service:
        service.on_close(lambda: print("closed", flush=True))
        async def ready():
            print(service.port, flush=True)
        service.background("ready", ready)
        await service.run()

launch(serve)
"""


def start(data: Path, *more: str) -> subprocess.Popen[str]:
    (data / "token").write_text("t")
    (data / "token").chmod(0o600)
    (data / "format.json").write_text('{"format": 1, "deployment": "dep-1"}')
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(data), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_process(tmp_path: Path, signal_: signal.Signals) -> None:
    with start(tmp_path) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) > 0
        process.send_signal(signal_)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == "closed\n"
    lines = [msgspec.json.decode(line) for line in err.splitlines()]
    assert [line["message"] for line in lines] == ["serving", "draining", "stopped"]
    assert all(line["service.name"] == "scheduler" and line["distroml.deployment"] == "dep-1" for line in lines)


def test_a_process_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    with start(tmp_path, "DISTROML_LISTEN=0.0.0.0:1") as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert err.startswith("cannot start: listen: 0.0.0.0 can be reached from other machines")
    assert "Traceback" not in err
