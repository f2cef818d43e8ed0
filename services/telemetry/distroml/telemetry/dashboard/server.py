"""The dashboard's web server, in telemetry's own process and event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Generator
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import ui
from nicegui.client import Client
from starlette.responses import FileResponse

from distroml.observability import logger
from distroml.telemetry.adapters.logsearch import EmbeddedLogSearch
from distroml.telemetry.adapters.scheduler import Queue
from distroml.telemetry.dashboard.access import LOGIN, Access
from distroml.telemetry.dashboard.cost_page import CostPage
from distroml.telemetry.dashboard.gui import on_exception, run_with
from distroml.telemetry.dashboard.job_page import JobPage
from distroml.telemetry.dashboard.jobs_page import JobsPage
from distroml.telemetry.dashboard.layout import say_away
from distroml.telemetry.domain.usage import Price
from distroml.telemetry.history.port import HistoryAway
from distroml.telemetry.lines import Lines
from distroml.telemetry.reactor import Projector
from distroml.telemetry.readmodel import ReadModel

log = logger(__name__)

STYLE = Path(__file__).with_name("style.css")
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 28 28"><path d="M7 20 14 7l7 13z" fill="none" '
    'stroke="#4d74f0" stroke-width="2"/><g fill="#4d74f0"><circle cx="14" cy="7" r="4"/><circle cx="7" cy="20" r="4"/>'
    '<circle cx="21" cy="20" r="4"/></g></svg>'
)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Signals are the service's, which drains the dashboard with the rest."""
        yield


class Dashboard:
    """Serves the pages. One per process: NiceGUI's routes are the process' own."""

    def __init__(
        self,
        model: ReadModel,
        projector: Projector,
        queue: Queue,
        *,
        taken: socket.socket,
        token: str,
        deployment: str,
        jaeger_ui: str = "",
        grafana_url: str = "",
        lines: Lines | None = None,
        price: Price | None = None,
    ) -> None:
        self.jaeger_ui, self.grafana_url = jaeger_ui, grafana_url
        self.lines = lines or Lines(EmbeddedLogSearch(model))
        self.price = price
        self.model, self.projector, self.queue, self.deployment = model, projector, queue, deployment
        self._socket, self._token = taken, token
        self._app: FastAPI | None = None
        self.server: _Server | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """Where it is, without the key."""
        host = self._socket.getsockname()[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def login_url(self) -> str:
        """Where it is, with the key: for the person who started it, never for a log."""
        return f"{self.url}{LOGIN}?token={self._token}"

    async def run(self) -> None:
        """Serve until cancelled; may be run again."""
        self._app = self._app or self._application()
        # Pages of a server that ended have lost their tasks; their browsers load them again.
        for client in list(Client.instances.values()):
            client.delete()
        # It tells of every websocket, and of its own start: the line below is enough.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(
            Access(self._app, token=self._token, deployment=self.deployment),
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=1,
            ws_max_size=1024 * 1024,
            limit_concurrency=512,
            h11_max_incomplete_event_size=64 * 1024,
        )
        self.server = server = _Server(config)
        # The listening socket outlives a crash of the server: whoever knows the address finds it again.
        own = self._socket.dup()
        log.info("dashboard serves", url=self.url)
        serving = asyncio.create_task(server.serve(sockets=[own]), name="dashboard-http")
        try:
            await asyncio.shield(serving)
            raise RuntimeError("the dashboard's web server ended by itself")
        finally:
            server.should_exit = True
            await asyncio.wait([serving], timeout=3)
            serving.cancel()
            own.close()

    def looked_at(self) -> bool:
        """Whether a browser has a page open."""
        return any(client.has_socket_connection for client in Client.instances.values())

    def _application(self) -> FastAPI:
        outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        outer.add_api_route("/distroml.css", _style, include_in_schema=False)
        _add_shared_head()

        async def jobs(state: str = "", q: str = "", page: str = "1") -> None:
            # Anybody may type an address; the database counts to 2**63.
            number = int(page) if page.isdecimal() and len(page) < 10 else 1
            try:
                await JobsPage(self, group=state, text=q, page=number).build()
            except HistoryAway as error:
                say_away(self, error)

        async def job(job: str) -> None:
            try:
                await JobPage(self, job).build()
            except HistoryAway as error:
                say_away(self, error)

        async def cost() -> None:
            try:
                await CostPage(self).build()
            except HistoryAway as error:
                say_away(self, error)

        ui.page("/cost", response_timeout=10)(cost)
        ui.page("/", response_timeout=10)(jobs)
        ui.page("/jobs/{job}", response_timeout=10)(job)
        run_with(
            outer,
            title="DistroML",
            favicon=_ICON,
            dark=None,
            language="en-US",
            tailwind=False,
            binding_refresh_interval=None,
            show_welcome_message=False,
            reconnect_timeout=15,
            message_history_length=200,
        )
        on_exception(_log_exception)
        return outer


def _style() -> FileResponse:
    return FileResponse(STYLE, media_type="text/css", headers={"cache-control": "no-cache"})


def _add_shared_head() -> None:
    link = '<link rel="stylesheet" href="/distroml.css">'
    if link not in Client.shared_head_html:
        ui.add_head_html(link, shared=True)


def _log_exception(error: Exception) -> None:
    log.error("a page failed", error=f"{type(error).__name__}: {error}")
