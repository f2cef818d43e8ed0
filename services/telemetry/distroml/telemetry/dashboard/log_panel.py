"""The card of logs on the job page: the newest lines as they come, and a search through all that are kept."""

from __future__ import annotations

from collections.abc import Callable

from nicegui import ui

from distroml.logstore import LEVELS, LogStoreError, Query
from distroml.telemetry.dashboard import present_events
from distroml.telemetry.dashboard.elements import Logs, LogSearch, Row
from distroml.telemetry.dashboard.gui import in_page
from distroml.telemetry.dashboard.layout import now_ms
from distroml.telemetry.lines import Lines

_PAGE = 200
_TABS = ("Live", "Search")


class LogPanel:
    """Two tabs of one card; `live` is for the page to fill."""

    def __init__(self, lines: Lines, job: str, *, on_filter: Callable[[int, str], object]) -> None:
        self._lines, self._job = lines, job
        self._asked: Row = {}
        self._cursor = ""
        with ui.element("section").classes("card"):
            ui.html("Logs", sanitize=False, tag="h2")
            with ui.element("div").classes("tabs").props('role="tablist" aria-label="logs"'):
                self._tabs = [self._tab(name) for name in _TABS]
            with ui.element("div").props('role="tabpanel"') as live:
                self.live = Logs(on_filter=on_filter)
            with ui.element("div").props('role="tabpanel"') as search:
                self._search = LogSearch(levels=LEVELS, on_search=self._ask)
            self._panels = (live, search)
        self._show(0)

    def ranks(self, ranks: list[int]) -> None:
        """Those to choose from."""
        self._search.show(ranks=ranks)

    def _tab(self, name: str) -> ui.element:
        tab = ui.element("button").props('type="button" role="tab"')
        with tab:
            ui.label(name)
        index = _TABS.index(name)
        tab.on("click", lambda _: self._show(index))
        return tab

    def _show(self, chosen: int) -> None:
        for index, (tab, panel) in enumerate(zip(self._tabs, self._panels, strict=True)):
            panel.set_visibility(index == chosen)
            tab.props(f'aria-selected="{"true" if index == chosen else "false"}"')

    def _ask(self, asked: Row) -> None:
        if not asked.get("older"):
            self._asked, self._cursor = asked, ""
        in_page(self._find, "search logs")

    async def _find(self) -> None:
        # Whoever presses twice gets the answer to what was asked last.
        asked, cursor = self._asked, self._cursor
        try:
            page = await self._lines.search.search(query_of(self._job, asked, cursor, now_ms()))
        except LogStoreError as error:
            self._search.refuse(str(error))
            return
        if asked is self._asked and cursor == self._cursor:
            self._cursor = page.cursor
            self._search.found(present_events.line_rows(page.lines), more=bool(page.cursor), older=bool(cursor))


def query_of(job: str, asked: Row, cursor: str, at_ms: int) -> Query:
    """What a browser asked for, whatever it sent; raises `WrongQuery`."""
    text, rank, level, within_s = (asked.get(name) for name in ("text", "rank", "level", "within_s"))
    return Query(
        job=job,
        text=text if isinstance(text, str) else "",
        ranks=(rank,) if isinstance(rank, int) and rank >= 0 else (),
        since_ms=max(0, at_ms - within_s * 1000) if isinstance(within_s, int) and within_s > 0 else 0,
        level=level if isinstance(level, str) else "",
        newest_first=True,
        limit=_PAGE,
        cursor=cursor,
    )
