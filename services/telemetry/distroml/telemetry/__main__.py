"""Composition root of the telemetry service."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from distroml import observability
from distroml.api.telemetry.v1.telemetry_pb2_grpc import add_TelemetryServiceServicer_to_server
from distroml.rpc import Service, Stores, connect, launch, open_stores
from distroml.telemetry import clocks
from distroml.telemetry.adapters.scheduler import Queue
from distroml.telemetry.dashboard.port import take
from distroml.telemetry.history.port import History
from distroml.telemetry.history.sqlite import SqliteHistory
from distroml.telemetry.lines import open_lines
from distroml.telemetry.live import Changes
from distroml.telemetry.meter import Meter
from distroml.telemetry.metrics import TrainingMetrics
from distroml.telemetry.past import Past
from distroml.telemetry.reactor import Projector
from distroml.telemetry.readmodel import ReadModel
from distroml.telemetry.rolling import Roller
from distroml.telemetry.server import FULL_NAME, TelemetryServicer
from distroml.telemetry.settings import TelemetrySettings, keep_storage_in, read_settings

if TYPE_CHECKING:
    from distroml.telemetry.dashboard.server import Dashboard


async def serve() -> None:
    """Run until SIGTERM."""
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    async with (
        # It writes no event and makes no log: until there is one, it ends, and is started again.
        open_stores(settings, create=False) as stores,
        Service(settings) as service,
        ReadModel(settings.data / "telemetry.sqlite", settings.limits, Changes(), open_history(settings)) as model,
    ):
        compose(service, settings, model, stores)
        await service.run()


def open_history(settings: TelemetrySettings) -> History:
    """History where the settings say."""
    if settings.postgres:
        # psycopg, SQLAlchemy and Alembic are needed nowhere else.
        from distroml.telemetry.history.postgres import PostgresHistory, schema_of

        return PostgresHistory(
            settings.postgres, max_events=settings.limits.events, schema=schema_of(settings.deployment)
        )
    return SqliteHistory(settings.data / "history.sqlite", max_events=settings.limits.events)


def compose(service: Service, settings: TelemetrySettings, model: ReadModel, stores: Stores) -> None:
    """Put the parts together; everything that is opened here is closed by the service."""
    limits = settings.limits
    door = take(settings.dashboard_listen)
    service.on_close(door.close)
    channel = None
    if "scheduler" in settings.peers:
        channel = connect(settings.peer("scheduler"), settings.token, actor="telemetry", tracing=service.tracing)
        service.on_close(lambda: channel.close(None))
    metrics = TrainingMetrics(max_jobs=limits.labelled_jobs, ttl_s=limits.label_ttl_s, clock_s=time.monotonic)
    meter = Meter(model, metrics)
    projector = Projector(
        stores.events,
        model,
        on_fact=meter.take,
        on_skip=metrics.skipped_events.inc,
        on_history=lambda why: service.report("history", why),
    )
    queue = Queue(channel, model.changes)
    lines = open_lines(service, model, settings.log_store, retention_s=settings.log_retention_s)

    asks: dict[str, clocks.Ask] = {}
    if settings.postgres:
        asks[clocks.POSTGRES] = clocks.of_postgres(settings.postgres)
    if lines.clock is not None:
        asks[clocks.ELASTICSEARCH] = lines.clock

    pages: list[Dashboard] = []

    async def dashboard() -> None:
        if not pages:
            # NiceGUI takes longer to import than everything else together; calls are served meanwhile. It keeps
            # files of its own in the working folder unless told otherwise.
            keep_storage_in(settings.data / "dashboard")
            build = await asyncio.to_thread(_import_dashboard)
            build_page = partial(
                build,
                token=settings.token,
                deployment=settings.deployment,
                jaeger_ui=settings.jaeger_ui,
                grafana_url=settings.grafana_url,
                lines=lines,
                price=settings.price,
            )
            pages.append(build_page(model, projector, queue, taken=door))
            queue.looked_at = pages[0].looked_at
        await pages[0].run()

    roller = Roller(model, limits, metrics)
    service.on_close(roller.finish)
    past = Past(model, stores.events, price=settings.price)
    servicer = TelemetryServicer(
        *(model, metrics, limits, past, service.draining, lines),
        jaeger_ui=settings.jaeger_ui,
        grafana_url=settings.grafana_url,
    )
    service.add(add_TelemetryServiceServicer_to_server, servicer, FULL_NAME)
    service.background("stores", partial(stores.watch, service.report))
    service.background("clock watch", partial(clocks.watch, asks, partial(service.report, clocks.PART)))
    service.background("projection", projector.run)
    service.background("rollups", roller.run)
    service.background("recoveries", meter.run)
    service.background("queue", queue.run)
    service.background("dashboard", dashboard)
    service.background("upkeep", meter.upkeep)


def _import_dashboard() -> type[Dashboard]:
    from distroml.telemetry.dashboard.server import Dashboard

    return Dashboard


if __name__ == "__main__":
    launch(serve)
