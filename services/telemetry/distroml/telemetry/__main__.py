"""Composition root of the telemetry service."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from distroml import observability
from distroml.api.telemetry.v1.telemetry_pb2_grpc import add_TelemetryServiceServicer_to_server
from distroml.eventstore.sqlite import open_event_store
from distroml.rpc import Service, connect, launch
from distroml.telemetry.adapters.scheduler import Queue
from distroml.telemetry.dashboard.port import take
from distroml.telemetry.live import Changes
from distroml.telemetry.meter import Meter
from distroml.telemetry.metrics import TrainingMetrics
from distroml.telemetry.reactor import Projector
from distroml.telemetry.readmodel import ReadModel
from distroml.telemetry.server import FULL_NAME, TelemetryServicer
from distroml.telemetry.settings import TelemetrySettings, keep_storage_in, read_settings

if TYPE_CHECKING:
    from distroml.telemetry.dashboard.server import Dashboard


async def serve() -> None:
    """Run until SIGTERM."""
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    async with (
        Service(settings) as service,
        ReadModel(settings.data / "telemetry.sqlite", settings.limits, Changes()) as model,
    ):
        compose(service, settings, model)
        await service.run()


def compose(service: Service, settings: TelemetrySettings, model: ReadModel) -> None:
    """Put the parts together; everything that is opened here is closed by the service."""
    limits = settings.limits
    door = take(settings.dashboard_listen)
    service.on_close(door.close)
    store = open_event_store(settings.data / "control.sqlite", create=False)
    service.on_close(store.close)
    channel = None
    if "scheduler" in settings.peers:
        channel = connect(settings.peer("scheduler"), settings.token, actor="telemetry")
        service.on_close(lambda: channel.close(None))
    metrics = TrainingMetrics(max_jobs=limits.labelled_jobs, ttl_s=limits.label_ttl_s, clock_s=time.monotonic)
    meter = Meter(model, metrics)
    projector = Projector(store, model, on_fact=meter.take, on_skip=metrics.skipped_events.inc)
    queue = Queue(channel, model.changes)

    pages: list[Dashboard] = []

    async def dashboard() -> None:
        if not pages:
            # NiceGUI takes longer to import than everything else together; calls are served meanwhile. It keeps
            # files of its own in the working folder unless told otherwise.
            keep_storage_in(settings.data / "dashboard")
            build = await asyncio.to_thread(_import_dashboard)
            token, deployment = settings.token, settings.deployment
            pages.append(build(model, projector, queue, taken=door, token=token, deployment=deployment))
            queue.looked_at = pages[0].looked_at
        await pages[0].run()

    servicer = TelemetryServicer(model, metrics, limits, service.draining)
    service.add(add_TelemetryServiceServicer_to_server, servicer, FULL_NAME)
    service.background("projection", projector.run)
    service.background("recoveries", meter.run)
    service.background("queue", queue.run)
    service.background("dashboard", dashboard)
    service.background("upkeep", meter.upkeep)


def _import_dashboard() -> type[Dashboard]:
    from distroml.telemetry.dashboard.server import Dashboard

    return Dashboard


if __name__ == "__main__":
    launch(serve)
