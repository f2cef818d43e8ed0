"""Channels to a control plane's services."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from distroml.api.checkpoint.v1 import checkpoint_pb2_grpc
from distroml.api.common.v1 import replay_pb2_grpc
from distroml.api.scheduler.v1 import jobs_pb2_grpc
from distroml.api.telemetry.v1 import telemetry_pb2_grpc
from distroml.cli.errors import CliError, Unreachable, UsageError
from distroml.cli.plane.control import connect_or_fail
from distroml.cli.plane.datafolder import DataFolder, Endpoints
from distroml.cli.plane.elsewhere import named
from distroml.observability import trace
from distroml.rpc import connect
from distroml.rpc.errors import RemoteError

if TYPE_CHECKING:
    from distroml.api.checkpoint.v1.checkpoint_pb2_grpc import CheckpointServiceAsyncStub
    from distroml.api.common.v1.replay_pb2_grpc import ReplayServiceAsyncStub
    from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceAsyncStub
    from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceAsyncStub

T = TypeVar("T")
# The services that own streams, and so can replay them.
STREAM_OWNERS = ("scheduler", "rendezvous", "checkpoint")


@dataclass(frozen=True, slots=True)
class Plane:
    """Stubs of one control plane's services."""

    folder: DataFolder
    endpoints: Endpoints
    token: str = field(repr=False)
    jobs: JobServiceAsyncStub
    checkpoints: CheckpointServiceAsyncStub
    telemetry: TelemetryServiceAsyncStub
    replay: dict[str, ReplayServiceAsyncStub]

    @property
    def login_url(self) -> str:
        """The dashboard's address with the token that opens it; empty where nobody said where the dashboard is."""
        return f"{self.endpoints.dashboard}/login?token={self.token}" if self.endpoints.dashboard else ""


@asynccontextmanager
async def open_plane(data: Path) -> AsyncGenerator[Plane]:
    """Stubs of the control plane that the environment names, else on this data folder; raises `Unreachable`."""
    folder = DataFolder(data)
    if (elsewhere := named(os.environ)) is not None:
        endpoints, token = elsewhere.endpoints, elsewhere.token
    else:
        endpoints, token = connect_or_fail(folder), folder.token()
    async with AsyncExitStack() as stack:
        # Who calls within a trace of their own, such as a pipeline, find there what they asked for.
        stack.enter_context(trace.use(trace.parse(os.environ.get("TRACEPARENT", ""))))
        channels = {
            name: await stack.enter_async_context(connect(endpoints.services[name], token, actor=user()))
            for name in ("scheduler", "rendezvous", "checkpoint", "telemetry")
        }
        yield Plane(
            folder,
            endpoints,
            token,
            cast("JobServiceAsyncStub", jobs_pb2_grpc.JobServiceStub(channels["scheduler"])),
            cast("CheckpointServiceAsyncStub", checkpoint_pb2_grpc.CheckpointServiceStub(channels["checkpoint"])),
            cast("TelemetryServiceAsyncStub", telemetry_pb2_grpc.TelemetryServiceStub(channels["telemetry"])),
            {
                name: cast("ReplayServiceAsyncStub", replay_pb2_grpc.ReplayServiceStub(channels[name]))
                for name in STREAM_OWNERS
            },
        )


def user() -> str:
    """Who asks, as events will tell: the login name, or the number of a user without one."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def call(data: Path, action: Callable[[Plane], Awaitable[T]]) -> T:
    """Run one action against the control plane; foreign errors become the command line's own."""

    async def inside() -> T:
        async with open_plane(data) as plane:
            return await action(plane)

    return translated(lambda: asyncio.run(inside()))


def translated(action: Callable[[], T]) -> T:
    """Run `action`; what a service answered becomes a `CliError` with the right exit code."""
    try:
        return action()
    except RemoteError as error:
        raise as_cli_error(error) from error


def as_cli_error(error: RemoteError) -> CliError:
    """The command line's error for a service's answer."""
    message = error.message
    if len(error.violations) > 1:
        message = "the request has mistakes:" + "".join(f"\n  {field}: {text}" for field, text in error.violations)
    hint = f"reason: {error.reason}" if error.reason else ""
    match error.status.name:
        case "UNAVAILABLE" | "DEADLINE_EXCEEDED" | "CANCELLED" | "UNKNOWN":
            return Unreachable(message, hint="see `distroml doctor`; services restart by themselves within seconds")
        case "INVALID_ARGUMENT" | "NOT_FOUND" | "UNAUTHENTICATED" | "PERMISSION_DENIED":
            return UsageError(message, hint=hint)
        case _:
            return CliError(message, hint=hint)
