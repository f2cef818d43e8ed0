"""TelemetryService: messages to the read model and back. No rule lives here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import grpc.aio as aio

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceServicer
from distroml.events import is_name
from distroml.logstore import Line, LogStoreDown, LogStoreRefused, Query, WrongQuery
from distroml.observability.trace import page_url
from distroml.rpc.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from distroml.telemetry.adapters.logs import LineRow, read_lines
from distroml.telemetry.adapters.logsearch import EmbeddedLogSearch
from distroml.telemetry.adapters.series import STEPS
from distroml.telemetry.adapters.summaries import read_samples, read_series, series_of, summary_message
from distroml.telemetry.dashboard.links import grafana_page
from distroml.telemetry.history.port import NotWritten, Rebuilt
from distroml.telemetry.intake import MAX_RANK, Batch, checked
from distroml.telemetry.lines import Lines
from distroml.telemetry.live import LOGS, Feeds
from distroml.telemetry.metrics import TrainingMetrics
from distroml.telemetry.past import Past, answering
from distroml.telemetry.readmodel import ReadModel, Stored
from distroml.telemetry.settings import Limits

FULL_NAME = "distroml.api.telemetry.v1.TelemetryService"
MAX_POINTS = 5000
DEFAULT_POINTS = 500
MAX_SERIES_NAMES = 64
MAX_RANKS_ASKED = 64
ACK_WINDOW = 64
LINES_PER_MESSAGE = 500
DEFAULT_LINES = 100
_MAX_AGENTS = 4096

# Fields of a query that the contract names otherwise.
_FIELDS = {"limit": "page_size", "cursor": "page_token"}
_INSTEAD = "`distroml job logs JOB` without a search shows the newest lines"

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
        self,
        model: ReadModel,
        metrics: TrainingMetrics,
        limits: Limits,
        past: Past,
        draining: asyncio.Event | None = None,
        lines: Lines | None = None,
        *,
        jaeger_ui: str = "",
        grafana_url: str = "",
    ) -> None:
        self._jaeger_ui, self._grafana_url = jaeger_ui, grafana_url
        self._lines = lines or Lines(EmbeddedLogSearch(model))
        self._model, self._metrics, self._limits = model, metrics, limits
        self._past = past
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
            except Exception:
                await acks.put(None)
                raise
            # Not where it is cancelled: nobody makes room in the queue then.
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
        names, ranks = list(request.names), list(request.ranks)
        most = request.max_points or DEFAULT_POINTS
        series = await self._model.read(read_series, request.job, names, ranks, request.from_step, most)
        if not series and not any(ranks):
            with answering():
                rolled = await self._model.rolled(request.job, names, from_step=request.from_step)
            series = series_of(rolled, 0, names, most, STEPS)
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

    async def SearchLogs(self, request: t.SearchLogsRequest, context: Context) -> t.SearchLogsResponse:
        """A page of kept lines."""
        _check(request.job, request.ranks, [])
        try:
            query = Query(
                job=request.job,
                text=request.text,
                ranks=tuple(request.ranks),
                since_ms=request.since_ms,
                until_ms=request.until_ms,
                level=request.level,
                newest_first=request.newest_first,
                limit=request.page_size or DEFAULT_LINES,
                cursor=request.page_token,
            )
            page = await self._lines.search.search(query)
        except WrongQuery as error:
            raise InvalidArgument([(_FIELDS.get(name, name), what) for name, what in error.problems]) from None
        except LogStoreRefused as error:
            raise FailedPrecondition("LogStoreRefused", f"{error}; {_INSTEAD}") from None
        except LogStoreDown as error:
            raise Unavailable("LogStoreDown", f"{error}; try again, or {_INSTEAD}") from None
        records = [record_of(request.job, line) for line in page.lines]
        return t.SearchLogsResponse(records=records, next_page_token=page.cursor, store=self._lines.store)

    async def GetJobSummary(self, request: t.GetJobSummaryRequest, context: Context) -> t.JobSummary:
        """The numbers of a job."""
        _check(request.job, (), [])
        with answering():
            detail = await self._model.detail(request.job, count_samples=True)
            plan = await self._model.plan(request.job)
        if detail is None:
            raise NotFound(
                "JobNotFound",
                f"telemetry knows no job {request.job!r}; `distroml jobs` lists those that exist",
                job=request.job,
            )
        summary = summary_message(detail, plan)
        summary.trace_url = page_url(self._jaeger_ui, detail.view.trace_id)
        summary.grafana_url = grafana_page(self._grafana_url, request.job)
        return summary

    async def ListHistory(self, request: t.ListHistoryRequest, context: Context) -> t.ListHistoryResponse:
        """Jobs of the past."""
        with answering():
            return await self._past.jobs(request)

    async def GetHistory(self, request: t.GetHistoryRequest, context: Context) -> t.GetHistoryResponse:
        """One job of the past."""
        with answering():
            return await self._past.job(request)

    async def GetCost(self, request: t.GetCostRequest, context: Context) -> t.GetCostResponse:
        """Slot time, and money where it has a price."""
        with answering():
            return await self._past.cost(request)

    async def RebuildHistory(
        self, request: t.RebuildHistoryRequest, context: Context
    ) -> AsyncGenerator[t.RebuildProgress]:
        """History anew from the log, beside the old one; it takes its place at the end."""
        with answering():
            async with aclosing(self._past.rebuild()) as steps:
                async for progress in steps:
                    yield progress

    async def _dropped_lines(self, job: str) -> int:
        return (await self._model.read(read_samples, job)).dropped_lines

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


def record_of(job: str, line: LineRow | Line) -> t.LogRecord:
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
        level=line.level,
        trace_id=line.trace_id,
        span_id=line.span_id,
        attempt=line.attempt,
    )
