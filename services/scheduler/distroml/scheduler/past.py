"""Names of jobs that ended a while ago, which telemetry's history remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceStub
from distroml.observability import logger
from distroml.rpc import RemoteError

if TYPE_CHECKING:
    import grpc.aio

    from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceAsyncStub

log = logger(__name__)

WAIT_S: Final = 2.0
"""Whoever asks for a job that nobody knows waits no longer for history, seconds."""
_LOOKED_AT: Final = 1000


class Past:
    """Asks telemetry; who has none finds old jobs by their ids only."""

    def __init__(self, channel: grpc.aio.Channel | None) -> None:
        self._telemetry = None if channel is None else cast("TelemetryServiceAsyncStub", TelemetryServiceStub(channel))

    async def named(self, name: str, project: str) -> Sequence[str]:
        """Ids of a project's jobs of this name, newest first; none where history does not answer."""
        if self._telemetry is None:
            return ()
        request = telemetry_pb2.ListHistoryRequest(project=project, text=name, page_size=_LOOKED_AT)
        try:
            found = await self._telemetry.ListHistory(request, timeout=WAIT_S)
        except RemoteError as error:
            log.info("history does not say which jobs had a name", name=name, why=error.message)
            return ()
        return [job.id for job in found.jobs if job.spec.name == name]
