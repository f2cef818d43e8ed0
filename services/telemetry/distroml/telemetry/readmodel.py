"""The read models behind one object: writes are batched in a thread of their own, reads run in another.

The event loop never touches SQLite. A damaged file is moved aside and the model begins anew; the projection then
replays the log into it, samples and lines of the past are gone.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from distroml.events import Position
from distroml.observability import logger
from distroml.telemetry.adapters.database import open_database, open_reader, set_aside
from distroml.telemetry.adapters.jobs import JobWriter, Projected, read_cursor
from distroml.telemetry.adapters.logs import LogWriter
from distroml.telemetry.adapters.series import SeriesWriter
from distroml.telemetry.intake import Batch
from distroml.telemetry.live import EVENTS, LOGS, RESOURCES, SAMPLES, Changes
from distroml.telemetry.settings import Limits

log = logger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

FLUSH_S = 0.15
_FLUSH_RECORDS = 5_000
_MAX_COUNTED_JOBS = 4096


class Rebuilt(Exception):
    """The file was damaged, set aside and begun anew: whoever folds into it starts from the beginning."""


class NotWritten(Exception):
    """The model could not be written (disk full, say); nothing of the batch is in it."""


@dataclass(slots=True)
class Stored:
    """What became of a batch: old news and lines pushed out, by job."""

    stale_samples: dict[str, int] = field(default_factory=dict[str, int])
    dropped_lines: dict[str, int] = field(default_factory=dict[str, int])


@dataclass(slots=True)
class _Writers:
    """The writing half; thrown away after any failed transaction, since its caches are then ahead of the file."""

    series: SeriesWriter
    logs: LogWriter
    jobs: JobWriter


class ReadModel:
    """Opens, writes and reads `telemetry.sqlite`. Enter it before use."""

    def __init__(self, path: Path, limits: Limits, changes: Changes) -> None:
        self._path, self._limits, self.changes = path, limits, changes
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix="telemetry-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix="telemetry-read")
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._writers: _Writers | None = None
        self._pending: list[tuple[Batch, asyncio.Future[Stored]]] = []
        self._pending_records = self._pending_bytes = 0
        self._dropped_samples: dict[str, int] = {}
        self._dropped_lines: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self.begun_anew = ""
        """Why this process found no usable model, or empty."""
        self.epoch = 0
        """Grows whenever the model begins anew while the process lives."""

    async def __aenter__(self) -> ReadModel:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._write_thread, self._open)
        self._flusher = asyncio.create_task(self._flush_for_ever(), name="telemetry-flush")
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
        await self.flush()
        await loop.run_in_executor(self._read_thread, self._close_reader)
        await loop.run_in_executor(self._write_thread, self._close_writer)
        self._read_thread.shutdown()
        self._write_thread.shutdown()

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
        """Write what waits now."""
        pending, self._pending = self._pending, []
        self._wake.clear()
        if not pending:
            return
        batches = [batch for batch, _ in pending]
        try:
            stored = await self._write(self._store, batches)
        except (NotWritten, Rebuilt) as error:
            for _, future in pending:
                if not future.done():
                    future.set_exception(error)
                    future.exception()
            return
        finally:
            self._pending_records -= sum(batch.records for batch in batches)
            self._pending_bytes -= sum(batch.bytes for batch in batches)
        for index, (_, future) in enumerate(pending):
            if not future.done():
                future.set_result(stored if index == 0 else Stored())
        self._announce(batches)

    async def apply(self, events: Sequence[Projected], cursor: Position, *, epoch: int) -> None:
        """Fold events and remember that the log is folded up to `cursor`, together.

        `epoch` is the model's own when the fold began.

        Raises:
            Rebuilt: the model began anew; fold from the beginning.
            NotWritten: try again later.
        """

        def fold(writers: _Writers) -> set[str]:
            if epoch != self.epoch:
                raise Rebuilt("the read model began anew")
            changed = writers.jobs.apply(events)
            writers.jobs.store_cursor(cursor)
            return changed

        for job in await self._write(fold):
            self.changes.publish(job, EVENTS)

    async def forget_cursor(self) -> None:
        """The log is another one: drop all that was folded, keep samples and lines."""

        def clear(_: _Writers) -> None:
            assert self._writer is not None
            for table in ("meta", "versions", "jobs", "events", "plans"):
                self._writer.execute(f"DELETE FROM {table}")
            self._writers = None

        await self._write(clear)

    async def purge(self) -> int:
        """Drop samples and lines of the oldest ended jobs past the limit; returns of how many jobs."""

        def drop(_: _Writers) -> int:
            assert self._writer is not None
            old = [
                job
                for (job,) in self._writer.execute(
                    "SELECT job FROM jobs WHERE finished_ms > 0 AND job IN (SELECT job FROM live UNION SELECT "
                    "DISTINCT job FROM logs) ORDER BY finished_ms DESC LIMIT -1 OFFSET ?",
                    (self._limits.jobs,),
                )
            ]
            for job in old:
                for table in ("live", "dropped", "points", "generations", "resources", "rank_steps", "logs", "spans"):
                    self._writer.execute(f"DELETE FROM {table} WHERE job=?", (job,))
            if old:
                self._writers = None
            return len(old)

        return await self._write(drop)

    # ---- reading

    async def read(self, query: Callable[..., R], *args: object, **kwargs: object) -> R:
        """Run `query(connection, …)` in the reading thread."""

        def run() -> R:
            if self._reader is None:
                self._reader = open_reader(self._path)
            return query(self._reader, *args, **kwargs)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._read_thread, run)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            await self._begin_anew(str(error))
            return await asyncio.get_running_loop().run_in_executor(self._read_thread, run)

    async def cursor(self) -> Position | None:
        """Up to where the log is folded."""
        return await self.read(read_cursor)

    # ---- inside

    async def _flush_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            if self._pending_records < _FLUSH_RECORDS:
                await asyncio.sleep(FLUSH_S)
            await self.flush()

    def _announce(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            for records, kind in ((batch.steps, SAMPLES), (batch.resources, RESOURCES), (batch.lines, LOGS)):
                for job in {record.job for record in records}:
                    self.changes.publish(job, kind)

    def _store(self, writers: _Writers, batches: Sequence[Batch]) -> Stored:
        stale = writers.series.add_steps([s for b in batches for s in b.steps])
        writers.series.add_resources(r for b in batches for r in b.resources)
        dropped = writers.logs.add_lines(r for b in batches for r in b.lines)
        writers.logs.add_spans(s for b in batches for s in b.spans)
        self._count(dropped)
        return Stored(stale_samples=stale, dropped_lines=dropped)

    def _count(self, lines: dict[str, int]) -> None:
        assert self._writer is not None
        samples, self._dropped_samples = self._dropped_samples, {}
        offered, self._dropped_lines = self._dropped_lines, {}
        rows = [
            (job, samples.get(job, 0), lines.get(job, 0) + offered.get(job, 0)) for job in {*samples, *lines, *offered}
        ]
        self._writer.executemany(
            "INSERT INTO dropped VALUES (?,?,?) ON CONFLICT (job) DO UPDATE SET samples=samples+excluded.samples, "
            "lines=lines+excluded.lines",
            rows,
        )

    async def _write(self, change: Callable[..., R], *args: object) -> R:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._write_thread, self._transaction, change, *args)
        except sqlite3.OperationalError as error:
            raise NotWritten(f"the read model cannot be written: {error}") from error
        except sqlite3.DatabaseError as error:
            await self._begin_anew(str(error))
            raise Rebuilt(str(error)) from error

    def _transaction(self, change: Callable[..., R], *args: object) -> R:
        if self._writer is None:
            self._open()
        assert self._writer is not None
        if self._writers is None:
            limits = self._limits
            self._writers = _Writers(
                SeriesWriter(self._writer, max_ranks=limits.ranks),
                LogWriter(self._writer, max_lines=limits.log_lines, max_bytes=limits.log_bytes, max_spans=limits.spans),
                JobWriter(self._writer, max_events=limits.events),
            )
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            result = change(self._writers, *args)
            self._writer.execute("COMMIT")
            return result
        except BaseException:
            self._writers = None
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def _open(self) -> None:
        self._writer, self.begun_anew = open_database(self._path)

    async def _begin_anew(self, why: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._read_thread, self._close_reader)

        def replace() -> None:
            self._close_writer()
            if self._path.exists():
                log.error("the read model is damaged and begins anew", why=why, moved_to=set_aside(self._path).name)
            self._open()

        await loop.run_in_executor(self._write_thread, replace)
        self.epoch += 1

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_writer(self) -> None:
        self._writers = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
