"""What each service owes every client, whatever it is about: its token, its health, its contract, its refusals."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from distroml.api.checkpoint.v1 import checkpoint_pb2 as ckpt
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.api.scheduler.v1 import jobs_pb2 as jobs
from distroml.api.telemetry.v1 import telemetry_pb2 as tele
from distroml.rpc import RemoteError
from tests.contract.calls import on_the_wire
from tests.contract.targets import SERVICES, Running
from tools import contract

SERVING = health_pb2.HealthCheckResponse.SERVING
API = "distroml.api"
REPLAY = f"{API}.common.v1.ReplayService"


@dataclass(frozen=True)
class Served:
    """What a service serves, and a call of it with one wrong field, `job`."""

    services: tuple[str, ...]
    method: str
    wrong: Message


SERVED = {
    "scheduler": Served(
        (f"{API}.scheduler.v1.JobService", f"{API}.scheduler.v1.NodeService", REPLAY),
        f"/{API}.scheduler.v1.JobService/GetJob",
        jobs.GetJobRequest(job="projects/x/cats/y"),
    ),
    "rendezvous": Served(
        (f"{API}.rendezvous.v1.RendezvousService", REPLAY),
        f"/{API}.rendezvous.v1.RendezvousService/GetGeneration",
        rdzv.GetGenerationRequest(job="../x"),
    ),
    "checkpoint": Served(
        (f"{API}.checkpoint.v1.CheckpointService", REPLAY),
        f"/{API}.checkpoint.v1.CheckpointService/GetLatest",
        ckpt.GetLatestRequest(job="No Job"),
    ),
    "telemetry": Served(
        (f"{API}.telemetry.v1.TelemetryService",),
        f"/{API}.telemetry.v1.TelemetryService/GetJobSummary",
        tele.GetJobSummaryRequest(job="No Job"),
    ),
}


@pytest.fixture(params=SERVICES)
def named(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def served(named: str) -> Served:
    return SERVED[named]


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer another"),), (("authorization", "a-token"),)])
async def test_a_call_without_the_right_token_is_refused(
    service: Running, served: Served, metadata: tuple[tuple[str, str], ...]
) -> None:
    code, info, bad = await on_the_wire(service.endpoint, served.method, served.wrong, metadata=metadata)
    assert (code, info.reason, info.domain) == (grpc.StatusCode.UNAUTHENTICATED, "WrongToken", "distroml")
    assert not bad.field_violations, "whoever is not known learns nothing about the request"


async def test_refusals_are_google_rpc_statuses(service: Running, served: Served) -> None:
    bearer = (("authorization", f"Bearer {service.token}"),)
    code, info, bad = await on_the_wire(service.endpoint, served.method, served.wrong, metadata=bearer)
    assert (code, info.reason, info.domain) == (grpc.StatusCode.INVALID_ARGUMENT, "InvalidArgument", "distroml")
    assert [violation.field for violation in bad.field_violations] == ["job"]
    assert all(violation.description for violation in bad.field_violations)

    code, info, _ = await on_the_wire(service.endpoint, served.method, b"\xff noise", metadata=bearer)
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "Garbled")

    long = (*bearer, ("distroml-actor", "x" * 1000))
    code, info, bad = await on_the_wire(service.endpoint, served.method, served.wrong, metadata=long)
    assert (code, info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "WrongMetadata")
    assert [violation.field for violation in bad.field_violations] == ["distroml-actor"]


async def test_what_gRPC_itself_refuses_comes_with_a_reason_and_what_to_do(service: Running, served: Served) -> None:
    known, _, _ = served.method.rpartition("/")
    async with service.channel() as channel:
        with pytest.raises(RemoteError) as unknown:
            await channel.unary_unary(f"{known}/Teleport", lambda body: body, lambda body: body)(b"")
        with pytest.raises(RemoteError) as large:
            await channel.unary_unary(served.method, lambda body: body, lambda body: body)(bytes(5 << 20))
    assert (unknown.value.status, unknown.value.reason) == (grpc.StatusCode.UNIMPLEMENTED, "Unimplemented")
    assert (large.value.status, large.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MessageTooLarge")


async def test_health_is_told_to_everybody(service: Running, served: Served) -> None:
    async with grpc.aio.insecure_channel(service.endpoint) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", *served.services):
            assert (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert (await watching.read()).status == SERVING
        watching.cancel()


async def test_what_is_served_is_what_was_published(service: Running, served: Served) -> None:
    """The running server describes itself; nothing that the last release published is gone or changed in it."""
    published = contract.read_published(contract.ROOT / "proto")
    own = {name.rpartition(".")[0] for name in served.services}
    wanted = [file for file in published.file if file.package in own]
    assert wanted
    async with service.channel() as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def ask(**what: str) -> reflection_pb2.ServerReflectionResponse:
            call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**what)]))
            return await anext(aiter(call))

        listed = {one.name for one in (await ask(list_services="")).list_services_response.service}
        assert {name for name in listed if name.startswith(API)} == set(served.services)
        described: dict[str, FileDescriptorProto] = {}
        for file in wanted:
            answer = await ask(file_by_filename=file.name)
            assert answer.WhichOneof("message_response") == "file_descriptor_response", f"{file.name} is gone"
            for data in answer.file_descriptor_response.file_descriptor_proto:
                found = FileDescriptorProto.FromString(data)
                described[found.name] = found
    now = FileDescriptorSet(file=described.values())
    assert contract.breaking(FileDescriptorSet(file=wanted), now) == []
