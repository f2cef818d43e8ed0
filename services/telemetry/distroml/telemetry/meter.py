"""Metrics that follow from events and samples together, and the upkeep of what is bounded by time."""

from __future__ import annotations

import asyncio
import time

from distroml.observability import logger
from distroml.telemetry.domain.facts import GenerationFormed, MeteredFact
from distroml.telemetry.history.port import HistoryAway, NotWritten, Rebuilt
from distroml.telemetry.live import EVENTS, SAMPLES
from distroml.telemetry.metrics import TrainingMetrics, category_label
from distroml.telemetry.readmodel import ReadModel

log = logger(__name__)

_MAX_OPEN = 256
_GIVE_UP_S = 3600.0
_CHECK_EVERY_S = 1.0
UPKEEP_EVERY_S = 300.0


class Meter:
    """Has facts counted as they are told; times recoveries once their first step is seen."""

    def __init__(self, model: ReadModel, metrics: TrainingMetrics) -> None:
        self._model, self._metrics = model, metrics
        self._open: dict[str, tuple[int, float]] = {}

    def take(self, job: str, fact: MeteredFact) -> None:
        """A new fact of a job."""
        self._metrics.take(job, fact)
        if isinstance(fact, GenerationFormed) and (job in self._open or len(self._open) < _MAX_OPEN):
            self._open[job] = (fact.number, time.monotonic())

    async def run(self) -> None:
        """Time recoveries for ever."""
        with self._model.changes.watch() as watch:
            while True:
                if await watch.wait() & {EVENTS, SAMPLES}:
                    for job, (generation, since) in list(self._open.items()):
                        if await self._settled(job, generation) or time.monotonic() - since > _GIVE_UP_S:
                            del self._open[job]
                await asyncio.sleep(_CHECK_EVERY_S)

    async def _settled(self, job: str, generation: int) -> bool:
        try:
            detail = await self._model.detail(job)
        except HistoryAway:
            return False
        if detail is None:
            return True
        row = next((r for r in detail.recoveries if r.generation == generation), None)
        if row is None:
            # Nothing broke before this generation: there is no recovery to time.
            return True
        if not row.first_step_at_ms:
            return False
        seconds = max(0, row.first_step_at_ms - row.lost_at_ms) / 1000
        self._metrics.recovery_seconds.labels(category_label(row.category)).observe(seconds)
        return True

    async def upkeep(self) -> None:
        """Forget labels of quiet jobs and samples of old ones, for ever."""
        while True:
            self._metrics.forget_old(time.monotonic())
            try:
                if purged := await self._model.purge():
                    log.info("samples and lines of old jobs dropped", jobs=purged)
            except (NotWritten, Rebuilt) as error:
                log.warning("old jobs could not be dropped", why=str(error))
            await asyncio.sleep(UPKEEP_EVERY_S)
