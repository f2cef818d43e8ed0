"""Feeding a projection from the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from distroml.events import Position, Projection, Recorded
from distroml.eventstore.port import EventStoreError, Subscription

BATCH = 100
"""Events applied between two acknowledgements at most."""
IDLE_S = 0.25
"""An acknowledgement is at most this late once no more events come."""
RETRY_S = (0.1, 30.0)
"""First and longest pause before a held event is tried again."""


class ProjectionRunner:
    """Applies every event of a subscription to a projection, in order, and acknowledges in batches.

    An event that the projection cannot apply holds it: nothing later is applied, `failure` says what and why,
    and the event is tried again with growing pauses until it succeeds or the runner is cancelled.

    Attributes:
        applied: position of the last event applied; None before the first.
        failure: what holds the projection now; empty where it runs.
    """

    def __init__(
        self,
        subscription: Subscription,
        projection: Projection,
        *,
        report: Callable[[Recorded, Exception], None] = lambda recorded, error: None,
    ) -> None:
        """`report` is called once for each event that begins to hold the projection."""
        self._subscription, self._projection, self._report = subscription, projection, report
        self._unacknowledged: Recorded | None = None
        self._count = 0
        self.applied: Position | None = None
        self.failure = ""

    async def run(self) -> None:
        """Until the subscription ends or this is cancelled; what was applied is then acknowledged."""
        acknowledger = asyncio.create_task(self._acknowledge_when_idle())
        try:
            async for recorded in self._subscription:
                await self._apply(recorded)
                self.applied, self._unacknowledged = recorded.position, recorded
                self._count += 1
                if self._count >= BATCH:
                    await self._acknowledge()
        finally:
            acknowledger.cancel()
            await asyncio.gather(acknowledger, return_exceptions=True)
            await self._acknowledge()

    async def _apply(self, recorded: Recorded) -> None:
        pause, longest = RETRY_S
        while True:
            try:
                self._projection.apply(recorded)
            except Exception as error:
                if not self.failure:
                    self._report(recorded, error)
                self.failure = (
                    f"{recorded.type} at {recorded.position} ({recorded.stream} version {recorded.version}) cannot be"
                    f" applied: {type(error).__name__}: {error}"
                )
                await asyncio.sleep(pause)
                pause = min(2 * pause, longest)
            else:
                self.failure = ""
                return

    async def _acknowledge_when_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_S)
            if self._unacknowledged is not None:
                await self._acknowledge()

    async def _acknowledge(self) -> None:
        recorded, self._unacknowledged, self._count = self._unacknowledged, None, 0
        if recorded is None:
            return
        try:
            await self._subscription.ack(recorded)
        except EventStoreError:
            # Not acknowledged means delivered again, which a projection bears; the next batch acknowledges this too.
            self._unacknowledged = self._unacknowledged or recorded
