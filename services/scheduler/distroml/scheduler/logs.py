"""Lines of a job's workers, which telemetry keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final, cast

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceStub
from distroml.rpc import RemoteError, errors
from distroml.scheduler.adapters.messages import timestamp

if TYPE_CHECKING:
    import grpc.aio

    from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceAsyncStub

AWAY: Final = "logs are kept by telemetry, which does not answer; training goes on without it, so ask again in a moment"


class Logs:
    """Passes questions about lines on to telemetry."""

    def __init__(self, channel: grpc.aio.Channel | None) -> None:
        self._telemetry = None if channel is None else cast("TelemetryServiceAsyncStub", TelemetryServiceStub(channel))

    async def stream(self, request: pb.StreamLogsRequest, job: str) -> AsyncIterator[pb.StreamLogsResponse]:
        """Lines of `job`; raises `Unavailable` where telemetry is away."""
        if self._telemetry is None:
            text = "this scheduler was not told where telemetry is (DISTROML_TELEMETRY); it has no lines to show"
            raise errors.Unavailable("TelemetryAway", text)
        query = telemetry_pb2.QueryLogsRequest(job=job, ranks=request.ranks, follow=request.follow, tail=request.tail)
        try:
            async for response in self._telemetry.QueryLogs(query):
                yield pb.StreamLogsResponse(lines=[_line(record) for record in response.records])
        except RemoteError as error:
            if not error.is_transient:
                raise
            raise errors.Unavailable("TelemetryAway", f"{AWAY} ({error.message})") from None


def _line(record: telemetry_pb2.LogRecord) -> pb.LogLine:
    return pb.LogLine(
        rank=record.rank,
        stream=record.stream,
        text=record.text,
        at=timestamp(record.at_ms),
        generation=record.generation,
        worker=record.worker,
    )
