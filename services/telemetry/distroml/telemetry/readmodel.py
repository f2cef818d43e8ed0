"""The read models behind one object: samples and lines in a file of this process, written in batches; and history.

A damaged file of samples is moved aside and begins anew; what was in it is gone, its roll-ups are in history.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from distroml.api.telemetry.v1.telemetry_pb2 import StepSample
from distroml.observability import logger
from distroml.telemetry.adapters.live import LiveRow, live_from, read_jobs_with_samples, read_live_of
from distroml.telemetry.adapters.logs import LogWriter
from distroml.telemetry.adapters.plans import Chosen, read_plan
from distroml.telemetry.adapters.samples import LAYOUT
from distroml.telemetry.adapters.series import (
    STEPS,
    SeriesWriter,
    buckets_of,
    read_history,
    step_values,
    stored_ranks,
)
from distroml.telemetry.adapters.sqlitefile import SqliteFile
from distroml.telemetry.adapters.summaries import JobDetail, job_detail, read_samples
from distroml.telemetry.domain.rollup import RollupBuffer, finest
from distroml.telemetry.domain.thinning import Bucket
from distroml.telemetry.history.port import History, NotWritten, Rebuilt
from distroml.telemetry.intake import Batch
from distroml.telemetry.live import LOGS, RESOURCES, SAMPLES, Changes
from distroml.telemetry.settings import Limits

log = logger(__name__)

R = TypeVar("R")

FLUSH_S = 0.15
_FLUSH_RECORDS = 5_000
_MAX_COUNTED_JOBS = 4096


@dataclass(slots=True)
class Stored:
    """What became of a batch: old news and lines pushed out, by job."""

    stale_samples: dict[str, int] = field(default_factory=dict[str, int])
    dropped_lines: dict[str, int] = field(default_factory=dict[str, int])
    fresh: Sequence[StepSample] = ()


@dataclass(slots=True)
class _Writers:
    """The writing half; thrown away after any failed transaction, since its caches are then ahead of the file."""

    series: SeriesWriter
    logs: LogWriter


class ReadModel:
    """Opens, writes and reads `telemetry.sqlite`. Enter it before use."""

    def __init__(self, path: Path, limits: Limits, changes: Changes, history: History) -> None:
        self._limits, self.changes, self.history = limits, changes, history
        self._file = SqliteFile(path, LAYOUT, on_reset=self._forget_writers)
        self._writers: _Writers | None = None
        self._pending: list[tuple[Batch, asyncio.Future[Stored]]] = []
        self._pending_records = self._pending_bytes = 0
        self._dropped_samples: dict[str, int] = {}
        self._dropped_lines: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None
        self.rollups = RollupBuffer(max_rows=limits.rollup_rows)

    async def __aenter__(self) -> ReadModel:
        await self._file.__aenter__()
        await self.history.__aenter__()
        self._flusher = asyncio.create_task(self._flush_for_ever(), name="telemetry-flush")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        await self.flush()
        await self.history.__aexit__()
        await self._file.__aexit__()

    @property
    def begun_anew(self) -> str:
        """Why this process found no usable file of samples, or empty."""
        return self._file.begun_anew

    @property
    def epoch(self) -> int:
        """Grows whenever the file of samples begins anew while the process lives."""
        return self._file.epoch

    # ---- writing

    def offer(self, batch: Batch) -> asyncio.Future[Stored] | None:
        """Take a batch to be written soon; None where too much waits already and the batch is dropped.

        The future ends when the batch is in the file, with `NotWritten` or `Rebuilt` where it is not.
        """
        limits = self._limits
        if self._pending_records + batch.records > limits.pending_records:
            return None
        if self._pending_bytes + batch.bytes > limits.pending_bytes:
            return None
        future = asyncio.get_running_loop().create_future()
        self._pending.append((batch, future))
        self._pending_records += batch.records
        self._pending_bytes += batch.bytes
        self._wake.set()
        return future

    def note_dropped(self, batch: Batch) -> None:
        """The batch was not taken: its jobs' counts of dropped records say so with the next write."""
        for records, counts in (
            ((*batch.steps, *batch.resources), self._dropped_samples),
            (batch.lines, self._dropped_lines),
        ):
            for record in records:
                if record.job in counts or len(counts) < _MAX_COUNTED_JOBS:
                    counts[record.job] = counts.get(record.job, 0) + 1

    @property
    def pending_records(self) -> int:
        """Records that wait to be written."""
        return self._pending_records

    async def flush(self) -> None:
        """Write what waits now; on return, what was on its way before is written as well."""
        async with self._flushing:
            await self._flush()

    async def purge(self) -> int:
        """Drop samples and lines of the oldest ended jobs past the limit; returns of how many jobs."""
        old = (await self.history.ended(await self.read(read_jobs_with_samples)))[self._limits.jobs :]

        def drop(db: sqlite3.Connection) -> None:
            for job in old:
                for table in ("live", "dropped", "points", "generations", "resources", "rank_steps", "logs", "spans"):
                    db.execute(f"DELETE FROM {table} WHERE job=?", (job,))
            self._forget_writers()

        if old:
            await self._file.write(drop)
        return len(old)

    # ---- reading

    async def read(self, query: Callable[..., R], *args: object, **kwargs: object) -> R:
        """Run `query(connection, …)` in the reading thread."""

        return await self._file.read(lambda db: query(db, *args, **kwargs))

    async def detail(self, job: str, *, count_samples: bool = False) -> JobDetail | None:
        """What is known of a job; None where that is nothing."""
        # In this order: a view is at least as new as the position that it is told with.
        cursor = await self.history.cursor()
        view = await self.history.view(job)
        known = await self.read(read_samples, job, count_samples=count_samples)
        if view is not None and not known.live.at_ms:
            live = live_from(await self.history.newest([job]))
            known = replace(known, live=live.get(job, known.live))
        return job_detail(job, view, known, str(cursor) if cursor else "")

    async def plan(self, job: str) -> Chosen | None:
        """The plan of the job's newest generation that chose one."""
        body = await self.history.plan(job)
        return None if body is None else read_plan(body)

    async def live(self, jobs: Sequence[str]) -> Mapping[str, LiveRow]:
        """The newest numbers of jobs, from the samples here or else from roll-ups."""
        here = await self.read(read_live_of, jobs)
        elsewhere = [job for job in jobs if job not in here]
        return {**live_from(await self.history.newest(elsewhere) if elsewhere else ()), **here}

    async def steps(self, job: str, *, from_step: int = 0) -> list[Bucket]:
        """The history of the job's steps: its lowest rank's samples, or roll-ups where there is none here."""
        ranks = await self.read(stored_ranks, job, STEPS)
        if ranks:
            return await self.read(read_history, (job, STEPS, ranks[0]), from_x=from_step)
        return await self.rolled(job, from_step=from_step)

    async def rolled(self, job: str, metrics: Sequence[str] = (), *, from_step: int = 0) -> list[Bucket]:
        """The history of the job's steps out of roll-ups."""
        return [b for b in buckets_of(finest(await self.history.rollups(job, metrics))) if b.x >= from_step]

    # ---- inside

    async def _flush_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            if self._pending_records < _FLUSH_RECORDS:
                await asyncio.sleep(FLUSH_S)
            await self.flush()

    async def _flush(self) -> None:
        pending, self._pending = self._pending, []
        self._wake.clear()
        if not pending:
            return
        batches = [batch for batch, _ in pending]
        try:
            stored = await self._file.write(lambda db: self._store(db, batches))
        except (NotWritten, Rebuilt) as error:
            _refuse(pending, error)
            return
        except Exception as error:
            # Records that nobody foresaw: those of all others are still to be written.
            log.exception("a batch of samples and lines cannot be stored; it is dropped")
            _refuse(pending, NotWritten(f"the batch cannot be stored: {type(error).__name__}: {error}"))
            return
        finally:
            self._pending_records -= sum(batch.records for batch in batches)
            self._pending_bytes -= sum(batch.bytes for batch in batches)
        for index, (_, future) in enumerate(pending):
            if not future.done():
                future.set_result(stored if index == 0 else Stored())
        for sample in stored.fresh:
            self.rollups.add(
                sample.job,
                step_values(sample),
                at_ms=sample.at_ms,
                step=sample.step,
                generation=sample.generation,
            )
        self._announce(batches)

    def _announce(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            for records, kind in ((batch.steps, SAMPLES), (batch.resources, RESOURCES), (batch.lines, LOGS)):
                for job in {record.job for record in records}:
                    self.changes.publish(job, kind)

    def _store(self, db: sqlite3.Connection, batches: Sequence[Batch]) -> Stored:
        if self._writers is None:
            self._writers = _Writers(
                SeriesWriter(db, max_ranks=self._limits.ranks),
                LogWriter(
                    db,
                    max_lines=self._limits.log_lines,
                    max_bytes=self._limits.log_bytes,
                    max_spans=self._limits.spans,
                ),
            )
        writers = self._writers
        stale = writers.series.add_steps([s for b in batches for s in b.steps])
        writers.series.add_resources(r for b in batches for r in b.resources)
        dropped = writers.logs.add_lines(r for b in batches for r in b.lines)
        writers.logs.add_spans(s for b in batches for s in b.spans)
        self._count(db, dropped)
        return Stored(stale_samples=stale, dropped_lines=dropped, fresh=writers.series.take_fresh())

    def _count(self, db: sqlite3.Connection, lines: dict[str, int]) -> None:
        samples, self._dropped_samples = self._dropped_samples, {}
        offered, self._dropped_lines = self._dropped_lines, {}
        rows = [
            (job, samples.get(job, 0), lines.get(job, 0) + offered.get(job, 0)) for job in {*samples, *lines, *offered}
        ]
        db.executemany(
            "INSERT INTO dropped VALUES (?,?,?) ON CONFLICT (job) DO UPDATE SET samples=samples+excluded.samples, "
            "lines=lines+excluded.lines",
            rows,
        )

    def _forget_writers(self) -> None:
        self._writers = None


def _refuse(pending: Iterable[tuple[Batch, asyncio.Future[Stored]]], error: Exception) -> None:
    for _, future in pending:
        if not future.done():
            future.set_exception(error)
            # Whoever asked may be gone.
            future.exception()
