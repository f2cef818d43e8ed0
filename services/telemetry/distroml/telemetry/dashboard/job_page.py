"""One job, live: what it is, how far, how fast, who runs it, what they wrote, what happened."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from distroml.observability import trace
from distroml.telemetry.adapters.logs import LineRow, read_lines
from distroml.telemetry.adapters.summaries import JobDetail, read_use
from distroml.telemetry.dashboard import present_charts, present_events, present_job, present_tables
from distroml.telemetry.dashboard.compression_panel import CompressionPanel
from distroml.telemetry.dashboard.cost_page import cost_fact
from distroml.telemetry.dashboard.elements import Chart, Events, Facts, Head, Row, Table
from distroml.telemetry.dashboard.gui import in_page
from distroml.telemetry.dashboard.layout import Sources, frame, now_ms, run_live, show_notice
from distroml.telemetry.dashboard.links import grafana_page
from distroml.telemetry.dashboard.log_panel import LogPanel
from distroml.telemetry.dashboard.plan_panel import PlanPanel
from distroml.telemetry.domain.thinning import Bucket, thinned
from distroml.telemetry.domain.usage import DAY_MS
from distroml.telemetry.history.port import EventRow
from distroml.telemetry.live import EVENTS, LOGS, RESOURCES, SAMPLES

MAX_POINTS = 1500
LINES = 1000
EVENTS_SHOWN = 200
_STATE: Row = {"key": "state", "label": "State", "kind": "state"}
_WORKERS: list[Row] = [
    {"key": "rank", "label": "Rank", "kind": "text"},
    _STATE,
    {"key": "node", "label": "Node", "kind": "mono"},
    {"key": "pid", "label": "PID", "kind": "mono", "align": "right"},
    {"key": "cpu", "label": "CPU", "kind": "meter"},
    {"key": "memory", "label": "Memory", "kind": "text", "align": "right"},
    {"key": "step", "label": "Last step", "kind": "text", "align": "right"},
    {"key": "seen", "label": "Seen", "kind": "ago", "align": "right"},
    {"key": "start", "label": "Start", "kind": "text"},
]
_GPU: Row = {"key": "gpu", "label": "GPU", "kind": "meter"}
_CHECKPOINTS: list[Row] = [
    {"key": "step", "label": "Step", "kind": "text"},
    _STATE,
    {"key": "age", "label": "Age", "kind": "ago", "align": "right"},
    {"key": "written", "label": "Written", "kind": "text", "align": "right"},
    {"key": "reused", "label": "Reused", "kind": "text", "align": "right"},
    {"key": "seconds", "label": "Took", "kind": "text", "align": "right"},
    {"key": "hash", "label": "Manifest", "kind": "mono"},
]
_RECOVERIES: list[Row] = [
    {"key": "generation", "label": "Generation", "kind": "text"},
    {"key": "cause", "label": "Cause", "kind": "pair"},
    {"key": "at", "label": "When", "kind": "ago", "align": "right"},
    {"key": "took", "label": "To first step", "kind": "text", "align": "right"},
    {"key": "from", "label": "From step", "kind": "text", "align": "right"},
]
_SPEED = ("tokens_per_s", "step_s")
_SPEED_BY_SAMPLES = ("samples_per_s", "step_s")
_CHARTS: tuple[tuple[Row, tuple[str, ...]], ...] = (
    (
        {
            "title": "Loss",
            "axes": [{"scale": True}],
            "series": [{"label": "loss", "color": "--accent", "band": True}],
        },
        ("loss",),
    ),
    (
        {
            "title": "Throughput and step time",
            "axes": [{"scale": False}, {"scale": False}],
            "stacked": True,
            "series": [
                {"label": "tokens per second", "color": "--accent", "fill": True},
                {"label": "seconds per step", "color": "--series-b", "axis": 1},
            ],
        },
        _SPEED,
    ),
)


class JobPage:
    """One browser's view of a job."""

    def __init__(self, sources: Sources, job: str) -> None:
        self._sources, self._job = sources, job
        self._charts: list[Chart] = []
        self._names = [names for _, names in _CHARTS]
        self._sent_step = -1
        self._sent_generation = 0
        self._sent_points = 0
        self._marks: Sequence[Row] = ()
        self._newest_event = (0, -1)
        self._newest_line = 0
        self._rank, self._text = -1, ""
        self._has_gpu = False

    async def build(self) -> None:
        """Make the page with what is known, then keep it live."""
        detail = await self._sources.model.detail(self._job)
        if detail is None:
            self._not_found()
            return
        name = detail.view.name or self._job
        with frame(self._sources, f"{name} · DistroML", crumb=name) as status:
            self._status = status
        history = await self._history(0)
        self._choose_speed(history)
        marks = present_charts.mark_rows(detail.marks)
        events = await self._sources.model.history.events(self._job, limit=EVENTS_SHOWN)
        with ui.element("main").classes("grid"):
            with ui.element("section").classes("card"):
                self._head = Head({})
                self._facts = Facts()
                if url := trace.page_url(self._sources.jaeger_ui, detail.view.trace_id):
                    ui.link("Trace of this job", url, new_tab=True).classes("foot mono")
                if url := grafana_page(self._sources.grafana_url, self._job):
                    ui.link("This job in Grafana", url, new_tab=True).classes("foot mono")
            with ui.element("div").classes("grid even"):
                for (options, _), names in zip(_CHARTS, self._names, strict=True):
                    data = [present_charts.points(history, n) for n in names]
                    with ui.element("section").classes("card"):
                        self._charts.append(
                            Chart({**options, "data": data, "marks": marks}, on_overflow=self._start_charts_anew)
                        )
                if self._names[1] != _SPEED:
                    self._charts[1].rename(0, "samples per second")
            self._plan = PlanPanel(self._sources.model, self._job)
            self._compression = CompressionPanel()
            self._workers = self._table("Workers", _WORKERS, "No worker has started yet")
            with ui.element("div").classes("grid two"):
                self._log_panel = LogPanel(self._sources.lines, self._job, on_filter=self._filter)
                self._logs = self._log_panel.live
                with ui.element("section").classes("card"):
                    ui.html("Events", sanitize=False, tag="h2")
                    self._events = Events([present_events.event_row(e) for e in events])
            with ui.element("div").classes("grid two"):
                self._checkpoints = self._table("Checkpoints", _CHECKPOINTS, "No checkpoint yet")
                self._recoveries = self._table("Recoveries", _RECOVERIES, "No recovery so far")
            self._foot = ui.label("").classes("foot mono")
        self._note_sent(history)
        self._marks = marks
        self._note_events(events)
        await self._draw_detail(detail)
        await self._draw_workers(detail)
        await self._plan.draw(detail)
        await self._start_logs_anew()
        run_live(self._sources.model.changes.watch(self._job), self._draw)

    def _table(self, title: str, columns: list[Row], empty: str) -> Table:
        with ui.element("section").classes("card list dense"):
            ui.html(title, sanitize=False, tag="h2")
            return Table(columns, label=title.lower(), empty=empty)

    def _not_found(self) -> None:
        with frame(self._sources, "No such job · DistroML", crumb=self._job):
            pass
        with ui.element("main").classes("card lost"):
            starting = not self._sources.projector.caught_up
            ui.html("The control plane is starting" if starting else "No such job", sanitize=False, tag="h1")
            what = "The event log is still being read; try again in a moment." if starting else "Telemetry knows no job"
            ui.label(what if starting else f"{what} {self._job[:80]}.")
            ui.html('<p></p><a href="/">All jobs</a>', sanitize=False)

    # ---- drawing

    async def _draw(self, kinds: frozenset[str]) -> None:
        show_notice(self._sources, self._status)
        detail = await self._sources.model.detail(self._job)
        if detail is None:
            return
        await self._draw_detail(detail)
        if kinds & {EVENTS, SAMPLES, RESOURCES}:
            await self._draw_workers(detail)
            await self._plan.draw(detail)
        if kinds & {EVENTS, SAMPLES}:
            await self._draw_charts(detail)
        if EVENTS in kinds:
            await self._draw_events()
        if LOGS in kinds:
            await self._draw_logs(detail)

    async def _draw_detail(self, detail: JobDetail) -> None:
        reason = self._sources.queue.reasons.get(self._job)
        self._head.show(job=present_job.head(detail, reason))
        now = now_ms()
        used = await self._sources.model.history.used((), job=self._job, days=(0, now // DAY_MS), now_ms=now)
        slots = cost_fact(sum(one.slot_ms for one in used), self._sources.price)
        self._facts.show(items=[*present_job.facts(detail, now), slots])
        self._checkpoints.show(rows=present_tables.checkpoint_rows(detail.view.checkpoints))
        self._recoveries.show(rows=present_tables.recovery_rows(self._job, detail.recoveries))
        self._compression.draw(detail)
        dropped: list[str] = []
        if detail.dropped_samples:
            dropped.append(f"{detail.dropped_samples:,} samples dropped")
        self._foot.set_text(" · ".join([*dropped, f"event log read up to {detail.cursor}" if detail.cursor else ""]))
        note = f"{detail.dropped_lines:,} older lines are not kept" if detail.dropped_lines else ""
        ranks = [w.rank for w in detail.view.workers if w.rank >= 0]
        self._logs.show(note=note, ranks=ranks[:256])
        self._log_panel.ranks(ranks[:256])

    async def _draw_workers(self, detail: JobDetail) -> None:
        use = await self._sources.model.read(read_use, self._job)
        self._has_gpu = self._has_gpu or any(u.gpu_ratio is not None for u in use.values())
        columns = [*_WORKERS[:5], _GPU, *_WORKERS[5:]] if self._has_gpu else _WORKERS
        self._workers.show(rows=present_tables.worker_rows(detail.view, use)[:256], columns=columns)

    async def _draw_charts(self, detail: JobDetail) -> None:
        marks = present_charts.mark_rows(detail.marks)
        fresh_marks = marks if marks != self._marks else None
        # Samples of a newer generation go back behind what is drawn already: everything is sent again.
        if detail.live.generation != self._sent_generation or not self._sent_points:
            await self._send_all(marks)
            return
        history = await self._history(self._sent_step + 1)
        if len(history) + self._sent_points > 2 * MAX_POINTS:
            await self._send_all(marks)
            return
        if not history and fresh_marks is None:
            return
        self._marks = marks
        for chart, names in zip(self._charts, self._names, strict=True):
            chart.append([present_charts.points(history, n) for n in names], fresh_marks)
        self._note_sent(history)

    def _choose_speed(self, history: Sequence[Bucket]) -> None:
        """A script that counts no tokens has its samples counted."""
        counted = any(b.stats["tokens"][1] for b in history if "tokens" in b.stats)
        if history and not counted and self._names[1] == _SPEED:
            self._names[1] = _SPEED_BY_SAMPLES
            for chart in self._charts[1:]:
                chart.rename(0, "samples per second")

    def _start_charts_anew(self) -> None:
        async def send() -> None:
            await self._send_all(self._marks)

        in_page(send, "thin charts")

    async def _send_all(self, marks: Sequence[Row]) -> None:
        history = await self._history(0)
        self._choose_speed(history)
        self._marks, self._sent_points = marks, 0
        self._note_sent(history)
        for chart, names in zip(self._charts, self._names, strict=True):
            chart.replace([present_charts.points(history, n) for n in names], marks)

    async def _history(self, from_step: int) -> list[Bucket]:
        return thinned(await self._sources.model.steps(self._job, from_step=from_step), MAX_POINTS)

    def _note_sent(self, history: Sequence[Bucket]) -> None:
        if history:
            self._sent_step, self._sent_generation = history[-1].x, history[-1].generation
            self._sent_points += len(history)

    async def _draw_events(self) -> None:
        fresh = await self._sources.model.history.events(self._job, after=self._newest_event, limit=EVENTS_SHOWN)
        if fresh:
            self._note_events(fresh)
            self._events.prepend([present_events.event_row(e) for e in fresh])

    def _note_events(self, events: Sequence[EventRow]) -> None:
        if events:
            self._newest_event = (events[0].revision, events[0].idx)

    # ---- logs

    async def _draw_logs(self, detail: JobDetail) -> None:
        lines = await self._lines(after=self._newest_line)
        if len(lines) >= LINES:
            await self._start_logs_anew()
        elif lines:
            self._newest_line = lines[-1].seq
            self._logs.append(present_events.line_rows(lines))

    async def _start_logs_anew(self) -> None:
        lines = await self._lines(tail=LINES)
        self._newest_line = lines[-1].seq if lines else self._newest_line
        self._logs.replace(present_events.line_rows(lines))

    async def _lines(self, *, after: int = 0, tail: int = 0) -> list[LineRow]:
        ranks = [self._rank] if self._rank >= 0 else []
        return await self._sources.model.read(
            read_lines, self._job, ranks=ranks, contains=self._text, after=after, tail=tail, limit=LINES
        )

    def _filter(self, rank: int, text: str) -> None:
        self._rank, self._text, self._newest_line = rank, text, 0
        in_page(self._start_logs_anew, "filter logs")
