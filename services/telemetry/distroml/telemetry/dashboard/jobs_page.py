"""The list of jobs: counts that filter, search, one page of rows, all live."""

from __future__ import annotations

from urllib.parse import urlencode

from nicegui import ui

from distroml.telemetry.adapters.live import LiveRow, read_since
from distroml.telemetry.dashboard import present, present_job
from distroml.telemetry.dashboard.elements import Pager, Row, Search, Table, Tiles
from distroml.telemetry.dashboard.gui import in_page
from distroml.telemetry.dashboard.layout import Sources, frame, now_ms, run_live, show_notice
from distroml.telemetry.domain.summary import STALL_MS
from distroml.telemetry.history.port import STATE_GROUPS, Filter

PAGE_SIZE = 50
_COLUMNS: list[Row] = [
    {"key": "name", "label": "Job", "kind": "name"},
    {"key": "state", "label": "State", "kind": "state"},
    {"key": "workers", "label": "Workers", "kind": "text", "align": "right"},
    {"key": "progress", "label": "Step", "kind": "progress"},
    {"key": "loss", "label": "Loss", "kind": "text", "align": "right"},
    {"key": "speed", "label": "Throughput", "kind": "text", "align": "right"},
    {"key": "age", "label": "Submitted", "kind": "ago", "align": "right"},
    {"key": "eta", "label": "Estimated end", "kind": "eta", "align": "right"},
]
_GROUPS = (
    ("", "All", "mute"),
    ("active", "Active", "run"),
    ("waiting", "Waiting", "wait"),
    ("succeeded", "Succeeded", "good"),
    ("failed", "Failed, cancelled", "bad"),
)


class JobsPage:
    """One browser's view of the list."""

    def __init__(self, sources: Sources, *, group: str, text: str, page: int) -> None:
        self._sources = sources
        self._group = group if group in STATE_GROUPS else ""
        self._text = text.strip()[:256]
        self._page = max(1, page)

    async def build(self) -> None:
        """Make the page with its first rows in it, then keep it live."""
        with frame(self._sources, "Jobs · DistroML") as status:
            self._status = status
        with ui.element("main").classes("grid"):
            self._tiles = Tiles(label="jobs by state", on_pick=self._pick)
            with ui.element("section").classes("card list"):
                with ui.element("div").classes("bar-line"):
                    Search(self._text, placeholder="Search by name, id or project", on_change=self._search)
                    self._pager = Pager(PAGE_SIZE, on_page=self._turn)
                self._table = Table(_COLUMNS, label="jobs", empty="No jobs yet", hint="distroml run train.py")
        await self._draw(frozenset())
        run_live(self._sources.model.changes.watch(), self._draw)

    async def _draw(self, _: frozenset[str]) -> None:
        model, projector = self._sources.model, self._sources.projector
        show_notice(self._sources, self._status)
        history = model.history
        counts = await history.counts()
        select = Filter(states=STATE_GROUPS.get(self._group, ()), text=self._text)
        found = await history.jobs(select, offset=(self._page - 1) * PAGE_SIZE, limit=PAGE_SIZE)
        if not found.views and found.total:
            self._page = 1
            found = await history.jobs(select, limit=PAGE_SIZE)
        live = await model.live([view.job for view in found.views])
        now = now_ms()
        speeds = await model.read(read_since, now - STALL_MS)
        ended = set(await history.ended(list(speeds)))
        speed = sum(tokens for job, tokens in speeds.items() if job not in ended)
        self._tiles.show(items=[*self._counts(counts), _speed_tile(speed)])
        reasons = self._sources.queue.reasons
        rows = [present_job.job_row(v, live.get(v.job, LiveRow()), reasons.get(v.job), now) for v in found.views]
        empty, hint = self._nothing(projector.caught_up, sum(counts.values()))
        self._table.show(rows=rows, empty=empty, hint=hint)
        self._pager.show(page=self._page, total=found.total)

    def _counts(self, counts: dict[str, int]) -> list[Row]:
        return [
            {
                "key": group,
                "label": label,
                "tone": tone,
                "pick": True,
                "pressed": group == self._group,
                "value": f"{sum(n for s, n in counts.items() if not group or s in STATE_GROUPS[group]):,}",
            }
            for group, label, tone in _GROUPS
        ]

    def _nothing(self, caught_up: bool, jobs: int) -> tuple[str, str]:
        if jobs:
            return "No job matches", ""
        if not caught_up:
            return "The control plane is starting; jobs appear as the event log is read", ""
        return "No jobs yet. Run one:", "distroml run train.py"

    def _pick(self, group: str) -> None:
        self._group, self._page = (group if group in STATE_GROUPS else ""), 1
        self._changed()

    def _search(self, text: str) -> None:
        self._text, self._page = text.strip(), 1
        self._changed()

    def _turn(self, page: int) -> None:
        self._page = max(1, page)
        self._changed()

    def _changed(self) -> None:
        wanted = {"state": self._group, "q": self._text, "page": self._page if self._page > 1 else ""}
        query = urlencode({name: value for name, value in wanted.items() if value})
        ui.navigate.history.replace(f"/?{query}" if query else "/")

        async def draw() -> None:
            await self._draw(frozenset())

        in_page(draw, "filter jobs")


def _speed_tile(tokens_per_s: float) -> Row:
    value = present.number(tokens_per_s) if tokens_per_s else "–"
    return {"key": "speed", "label": "Tokens per second", "tone": "run", "value": value}
