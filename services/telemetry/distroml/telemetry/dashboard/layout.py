"""What every page shares: its frame, and a loop that draws changes at most twice a second."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Protocol

from nicegui import ui
from nicegui.client import Client

from distroml.observability import logger
from distroml.telemetry.adapters.scheduler import Queue
from distroml.telemetry.dashboard.elements import Status
from distroml.telemetry.dashboard.gui import in_background, on_delete
from distroml.telemetry.domain.usage import Price
from distroml.telemetry.history.port import HistoryAway
from distroml.telemetry.lines import Lines
from distroml.telemetry.live import EVENTS, Watch
from distroml.telemetry.reactor import Projector
from distroml.telemetry.readmodel import ReadModel

log = logger(__name__)

MIN_INTERVAL_S = 0.5
_MARK = (
    '<svg viewBox="0 0 28 28" aria-hidden="true"><path d="M7 20 14 7l7 13z"/><circle cx="14" cy="7" r="4"/>'
    '<circle cx="7" cy="20" r="4"/><circle cx="21" cy="20" r="4"/></svg>'
)


def now_ms() -> int:
    """The server's wall clock, Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Sources(Protocol):
    """Where pages read."""

    @property
    def model(self) -> ReadModel:
        """The read models."""
        ...

    @property
    def projector(self) -> Projector:
        """What fills them."""
        ...

    @property
    def queue(self) -> Queue:
        """The scheduler's newest word on waiting jobs."""
        ...

    @property
    def lines(self) -> Lines:
        """Where lines are searched."""
        ...

    @property
    def price(self) -> Price | None:
        """What a slot costs an hour, where that is configured."""
        ...

    @property
    def deployment(self) -> str:
        """Whose dashboard it is."""
        ...

    @property
    def jaeger_ui(self) -> str:
        """Where traces are looked at; empty where nowhere."""
        ...

    @property
    def grafana_url(self) -> str:
        """Where Grafana is looked at; empty where nowhere."""
        ...


@contextlib.contextmanager
def frame(sources: Sources, title: str, crumb: str = "") -> Generator[Status]:
    """Header and colours of a page; its body goes inside."""
    client = ui.context.client
    client.title = title
    ui.add_head_html(f"<script>window.dmlSkew = {now_ms()} - Date.now();</script>")
    with ui.element("header").classes("top"):
        ui.html(f'<a class="brand" href="/">{_MARK}DistroML</a>', sanitize=False)
        if crumb:
            with ui.element("nav").classes("crumb").props('aria-label="where you are"'):
                ui.html('<a href="/">Jobs</a>', sanitize=False)
        else:
            ui.label(sources.deployment).classes("where mono")
            with ui.element("nav").classes("crumb").props('aria-label="other pages"'):
                ui.html('<a href="/cost">Cost</a>', sanitize=False)
        status = Status()
    show_notice(sources, status)
    yield status


def show_notice(sources: Sources, status: Status) -> None:
    """Say what is away, or still starting."""
    projector = sources.projector
    if projector.trouble:
        status.show(notice=projector.trouble, tone="bad")
    elif not projector.caught_up:
        status.show(notice=f"Control plane starting: {projector.folded:,} events read", tone="warn")
    elif sources.queue.away:
        status.show(notice="The scheduler does not answer; shown is what the log says", tone="warn")
    else:
        status.show(notice="", tone="warn")


def say_away(sources: Sources, error: HistoryAway) -> None:
    """The page that there is while history cannot be read."""
    with frame(sources, "History is away · DistroML"):
        pass
    with ui.element("main").classes("card lost"):
        ui.html("History is away", sanitize=False, tag="h1")
        ui.label(f"{error}. Jobs run on, and what happens meanwhile is not lost. Load the page again in a moment.")


def run_live(watch: Watch, draw: Callable[[frozenset[str]], Awaitable[None]]) -> None:
    """Call `draw` with the kinds that changed, at most twice a second, for as long as the page is open.

    While the browser is away nothing is drawn, and everything at its return.
    """
    client = ui.context.client
    on_delete(client, in_background(_live(client, watch, draw), f"live {client.id}"))


async def _live(client: Client, watch: Watch, draw: Callable[[frozenset[str]], Awaitable[None]]) -> None:
    with watch:
        # What changed between building the page and here is not lost.
        watch.touch((EVENTS,))
        while not client.is_deleted:
            kinds = await watch.wait()
            await client.connected()
            began = time.monotonic()
            try:
                with client:
                    await draw(kinds)
            except HistoryAway as error:
                # The page stays as it is, under a notice; the projector looks for history meanwhile.
                log.info("a page waits for history", page=client.page.path, why=str(error))
            except Exception:
                log.exception("a page could not be drawn", page=client.page.path)
            # A page that is slow to draw gets as long a pause as it took.
            took = time.monotonic() - began
            await asyncio.sleep(max(MIN_INTERVAL_S, 2 * took))
