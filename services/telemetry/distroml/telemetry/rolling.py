"""Roll-ups on their way into history: each row once, in order; what waits is bounded, and what does not fit counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from distroml.events import fresh_id
from distroml.observability import logger
from distroml.telemetry.domain.rollup import WIDTHS_MS, Rollup
from distroml.telemetry.domain.usage import DAY_MS
from distroml.telemetry.history.port import NotWritten, Rebuilt
from distroml.telemetry.metrics import TrainingMetrics
from distroml.telemetry.readmodel import ReadModel
from distroml.telemetry.settings import Limits

log = logger(__name__)

EVERY_S = 10.0
_DROP_EVERY_S = 600.0
_FINISH_S = 5.0


class Roller:
    """Takes the model's buffer from time to time; a write whose outcome is unknown is written again as it was."""

    def __init__(self, model: ReadModel, limits: Limits, metrics: TrainingMetrics, *, every_s: float = EVERY_S) -> None:
        self._model, self._limits, self._metrics, self._every_s = model, limits, metrics, every_s
        self._writer, self._sequence = fresh_id("rollups"), 0
        self._waiting: Sequence[Rollup] = ()
        self._counted = 0
        self._next_drop = 0.0

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._every_s)
            await self.once()

    async def finish(self) -> None:
        """Write all that there is; what history does not take now ends with the process, and is told."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FINISH_S):
                await self._model.flush()
                await self.once()
                # That was what a failed write has left, where one has.
                await self.once()
        if left := len(self._waiting) + len(self._model.rollups):
            log.warning("roll-ups are lost with this process", rows=left)

    async def once(self) -> None:
        """Write what waits, and drop what is too old."""
        buffer = self._model.rollups
        if not self._waiting and len(buffer):
            self._waiting, self._sequence = buffer.take(), self._sequence + 1
        try:
            if self._waiting:
                await self._model.history.add_rollups(
                    self._waiting, writer=self._writer, sequence=self._sequence, now_ms=_now_ms()
                )
                self._waiting = ()
            if time.monotonic() >= self._next_drop:
                await self._model.history.drop_rollups(self._oldest())
                self._next_drop = time.monotonic() + _DROP_EVERY_S
        except (NotWritten, Rebuilt) as error:
            log.info("roll-ups wait", rows=len(self._waiting) + len(buffer), why=str(error))
        if buffer.dropped > self._counted:
            self._metrics.dropped.labels("rollup", "queue").inc(buffer.dropped - self._counted)
            self._counted = buffer.dropped

    def _oldest(self) -> dict[int, int]:
        days = (self._limits.fine_days, self._limits.middle_days, self._limits.coarse_days)
        return {width: _now_ms() - kept * DAY_MS for width, kept in zip(WIDTHS_MS, days, strict=True)}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
