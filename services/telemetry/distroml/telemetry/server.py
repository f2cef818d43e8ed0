"""TelemetryService: messages to the read model and back. No rule lives here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc.aio as aio

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceServicer
from distroml.events import is_name
from distroml.rpc.errors import InvalidArgument, NotFound, ResourceExhausted
from distroml.telemetry.adapters.logs import LineRow, read_lines
from distroml.telemetry.adapters.plans import read_plan
from distroml.telemetry.adapters.summaries import read_detail, read_series, summary_message
from distroml.telemetry.intake import MAX_RANK, Batch, checked
from distroml.telemetry.live import LOGS, Feeds
from distroml.telemetry.metrics import TrainingMetrics
from distroml.telemetry.readmodel import NotWritten, ReadModel, Rebuilt, Stored
from distroml.telemetry.settings import Limits

FULL_NAME = "distroml.api.telemetry.v1.TelemetryService"
MAX_POINTS = 5000
DEFAULT_POINTS = 500
MAX_SERIES_NAMES = 64
MAX_RANKS_ASKED = 64
ACK_WINDOW = 64
LINES_PER_MESSAGE = 500
_MAX_AGENTS = 4096

T = TypeVar("T")
Context: TypeAlias = "aio.ServicerContext[object, object]"


@dataclass(slots=True)
class _Taken:
    """A batch on its way: what will be answered, and when (None: now)."""

    response: t.PushResponse
    batch: Batch
    stored: asyncio.Future[Stored] | None


class TelemetryServicer(TelemetryServiceServicer):
    """Answers from the read model; takes what agents push."""

    def __init__(
        self, model: ReadModel, metrics: TrainingMetrics, limits: Limits, draining: asyncio.Event | None = None
    ) -> None:
        self._model, self._metrics, self._limits = model, metrics, limits
        self._draining = draining or asyncio.Event()
        self._feeds = Feeds[t.PushRequest]()
        self._agent_drops: dict[str, tuple[int, int]] = {}

    async def Push(
        self, request_iterator: AsyncIterator[t.PushRequest], context: Context
    ) -> AsyncGenerator[t.PushResponse]:
        """Acknowledge each batch when it is in the read model, or dropped and counted; in order."""
        acks: asyncio.Queue[_Taken | None] = asyncio.Queue(ACK_WINDOW)

        async def take() -> None:
            try:
                async for request in request_iterator:
                    await acks.put(self._take(request))
            finally:
                await acks.put(None)

        taking = asyncio.create_task(take(), name="telemetry-push")
        try:
            while (item := await acks.get()) is not None:
                await self._settle(item)
                yield item.response
            await taking
        finally:
            taking.cancel()

    def _take(self, request: t.PushRequest) -> _Taken:
        batch = checked(request, line_bytes=self._limits.line_bytes)
        response = t.PushResponse(
            sequence=request.sequence, dropped_samples=batch.malformed_samples, dropped_lines=batch.malformed_lines
        )
        self._count("form", batch.malformed_samples, batch.malformed_lines)
        self._count_agent(request)
        self._publish(batch)
        if not batch.records:
            return _Taken(response, batch, None)
        taken = _Taken(response, batch, self._model.offer(batch))
        if taken.stored is None:
            self._drop(taken, "queue")
        self._metrics.pending.set(self._model.pending_records)
        return taken

    async def _settle(self, taken: _Taken) -> None:
        if taken.stored is None:
            return
        try:
            outcome = await taken.stored
        except (NotWritten, Rebuilt):
            self._drop(taken, "disk")
            return
        self._count("bound", 0, sum(outcome.dropped_lines.values()))

    def _drop(self, taken: _Taken, where: str) -> None:
        self._model.note_dropped(taken.batch)
        samples, lines = len(taken.batch.steps) + len(taken.batch.resources), len(taken.batch.lines)
        taken.response.dropped_samples += samples
        taken.response.dropped_lines += lines
        self._count(where, samples, lines)

    def _count(self, where: str, samples: int, lines: int) -> None:
        if samples:
            self._metrics.dropped.labels("sample", where).inc(samples)
        if lines:
            self._metrics.dropped.labels("line", where).inc(lines)

    def _count_agent(self, request: t.PushRequest) -> None:
        """Agents count since their start: what grew since the last batch is new."""
        before = self._agent_drops.get(request.node, (0, 0))
        now = (request.dropped_samples, request.dropped_lines)
        grown = [n - b if n >= b else n for n, b in zip(now, before, strict=True)]
        self._count("agent", max(0, grown[0]), max(0, grown[1]))
        if request.node in self._agent_drops or len(self._agent_drops) < _MAX_AGENTS:
            self._agent_drops[request.node] = now

    def _publish(self, batch: Batch) -> None:
        for sample in batch.steps:
            if sample.rank == 0:
                self._metrics.observe_step(sample)
        for job in batch.jobs:
            if self._feeds.watched(job):
                self._feeds.put(
                    job,
                    t.PushRequest(
                        node=batch.node,
                        steps=[s for s in batch.steps if s.job == job],
                        resources=[r for r in batch.resources if r.job == job],
                    ),
                )

    async def QuerySeries(self, request: t.QuerySeriesRequest, context: Context) -> t.QuerySeriesResponse:
        """Thinned series."""
        wrong: list[tuple[str, str]] = []
        if not request.names:
            wrong.append(("names", "name at least one series, such as `loss`"))
        if len(request.names) > MAX_SERIES_NAMES:
            wrong.append(("names", f"at most {MAX_SERIES_NAMES}, not {len(request.names)}"))
        if not 0 <= request.max_points <= MAX_POINTS:
            wrong.append(("max_points", f"1 to {MAX_POINTS}, not {request.max_points}"))
        if request.from_step < 0:
            wrong.append(("from_step", "0 or more"))
        _check(request.job, request.ranks, wrong)
        series = await self._model.read(
            read_series,
            request.job,
            list(request.names),
            list(request.ranks),
            request.from_step,
            request.max_points or DEFAULT_POINTS,
        )
        return t.QuerySeriesResponse(series=series)

    async def WatchSamples(self, request: t.WatchSamplesRequest, context: Context) -> AsyncGenerator[t.PushRequest]:
        """Samples as they come. A slow reader loses the oldest ones and sees how many in `dropped_samples`."""
        _check(request.job, (), [])
        feed = self._feeds.open(request.job)
        if feed is None:
            raise ResourceExhausted(
                "TooManyWatchers", f"{request.job} has as many watchers as it may; close one and try again"
            )
        try:
            while (batch := await self._until_draining(feed.get())) is not None:
                out = t.PushRequest()
                out.CopyFrom(batch)
                out.dropped_samples = feed.dropped
                yield out
        finally:
            self._feeds.close(request.job, feed)

    async def QueryLogs(self, request: t.QueryLogsRequest, context: Context) -> AsyncGenerator[t.QueryLogsResponse]:
        """Kept lines, oldest first, then new ones where asked."""
        wrong: list[tuple[str, str]] = []
        if request.tail < 0:
            wrong.append(("tail", "0 or more"))
        if len(request.contains) > 1024:
            wrong.append(("contains", "at most 1024 characters"))
        _check(request.job, request.ranks, wrong)
        ranks, after, first = list(request.ranks), 0, True
        with self._model.changes.watch(request.job) as watch:
            while True:
                lines = await self._model.read(
                    read_lines,
                    request.job,
                    ranks=ranks,
                    contains=request.contains,
                    after=after,
                    tail=request.tail if first else 0,
                    limit=self._limits.log_lines if first and request.tail else LINES_PER_MESSAGE,
                )
                for start in range(0, len(lines), LINES_PER_MESSAGE):
                    chunk = lines[start : start + LINES_PER_MESSAGE]
                    records = [record_of(request.job, line) for line in chunk]
                    yield t.QueryLogsResponse(records=records, dropped_lines=await self._dropped_lines(request.job))
                first = False
                if lines:
                    after = lines[-1].seq
                    continue
                if not request.follow:
                    return
                while LOGS not in (kinds := await self._until_draining(watch.wait()) or frozenset()):
                    if not kinds:
                        return

    async def GetJobSummary(self, request: t.GetJobSummaryRequest, context: Context) -> t.JobSummary:
        """The numbers of a job."""
        _check(request.job, (), [])
        detail = await self._model.read(read_detail, request.job, count_samples=True)
        if detail is None:
            raise NotFound(
                "JobNotFound",
                f"telemetry knows no job {request.job!r}; `distroml jobs` lists those that exist",
                job=request.job,
            )
        return summary_message(detail, await self._model.read(read_plan, request.job))

    async def _dropped_lines(self, job: str) -> int:
        detail = await self._model.read(read_detail, job)
        return 0 if detail is None else detail.dropped_lines

    async def _until_draining(self, waiting: Awaitable[T]) -> T | None:
        """The outcome, or None when the service goes down first."""
        task = asyncio.ensure_future(waiting)
        drain = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({task, drain}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            drain.cancel()


def _check(job: str, ranks: Sequence[int], wrong: list[tuple[str, str]]) -> None:
    if not is_name(job):
        wrong = [("job", f"{job!r} is no job id; `distroml jobs` lists them"), *wrong]
    if len(ranks) > MAX_RANKS_ASKED or any(not 0 <= rank < MAX_RANK for rank in ranks):
        wrong = [*wrong, ("ranks", f"at most {MAX_RANKS_ASKED} ranks, each 0 or more")]
    if wrong:
        raise InvalidArgument(wrong)


def record_of(job: str, line: LineRow) -> t.LogRecord:
    """A kept line as the contract has it."""
    return t.LogRecord(
        job=job,
        rank=line.rank,
        worker=line.worker,
        generation=line.generation,
        stream=line.stream,
        text=line.text,
        at_ms=line.at_ms,
        offset=line.offset,
        incarnation=line.incarnation,
    )
