"""The scheduler's newest word on waiting jobs: their reasons change without an event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import grpc.aio as aio

from distroml.api.scheduler.v1.jobs_pb2 import GetQueueRequest
from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceStub
from distroml.observability import logger, trace
from distroml.rpc import RemoteError
from distroml.telemetry.live import EVENTS, Changes

if TYPE_CHECKING:
    from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceAsyncStub

log = logger(__name__)

ASK_EVERY_S = 2.0
_LOOK_EVERY_S = 0.5
_MAX_REASONS = 5000


class Queue:
    """Asks for the queue while somebody looks at a page, and not otherwise.

    Attributes:
        away: why the scheduler gave no answer last time, or empty.
        reasons: job to (reason, message).
        looked_at: whether somebody does, set by the dashboard.
    """

    def __init__(self, channel: aio.Channel | None, changes: Changes) -> None:
        self._stub = cast("JobServiceAsyncStub", JobServiceStub(channel)) if channel is not None else None
        self._changes = changes
        self.looked_at: Callable[[], bool] = lambda: False
        self.away = "" if channel is not None else "no scheduler is configured"
        self.reasons: Mapping[str, tuple[str, str]] = {}

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            if not self.looked_at():
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            before = (self.away, self.reasons)
            await self.ask()
            if before != (self.away, self.reasons):
                self._changes.publish("", EVENTS)
            await asyncio.sleep(ASK_EVERY_S)

    async def ask(self) -> None:
        """Ask once."""
        if self._stub is None:
            return
        try:
            with trace.use(trace.unsampled()):
                queue = await self._stub.GetQueue(GetQueueRequest(), timeout=2.0)
        except (RemoteError, aio.AioRpcError) as error:
            if not self.away:
                log.warning("the scheduler does not answer", why=str(error))
            self.away = str(error)
            return
        self.away = ""
        self.reasons = {e.job: (e.reason, e.message) for e in queue.entries[:_MAX_REASONS]}
