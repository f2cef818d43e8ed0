"""Composition root of the telemetry service."""

from __future__ import annotations

import time

from distroml import observability
from distroml.api.telemetry.v1.telemetry_pb2_grpc import add_TelemetryServiceServicer_to_server
from distroml.eventstore.sqlite import open_event_store
from distroml.rpc import Service, connect, launch
from distroml.telemetry.adapters.scheduler import Queue
from distroml.telemetry.dashboard.server import Dashboard
from distroml.telemetry.live import Changes
from distroml.telemetry.meter import Meter
from distroml.telemetry.metrics import TrainingMetrics
from distroml.telemetry.reactor import Projector
from distroml.telemetry.readmodel import ReadModel
from distroml.telemetry.server import FULL_NAME, TelemetryServicer
from distroml.telemetry.settings import read_settings


async def serve() -> None:
    """Run until SIGTERM."""
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    limits = settings.limits
    async with Service(settings) as service, ReadModel(settings.data / "telemetry.sqlite", limits, Changes()) as model:
        store = open_event_store(settings.data / "control.sqlite", create=False)
        service.on_close(store.close)
        channel = None
        if "scheduler" in settings.peers:
            channel = connect(settings.peer("scheduler"), settings.token, actor="telemetry")
            service.on_close(lambda: channel.close(None))
        metrics = TrainingMetrics(max_jobs=limits.labelled_jobs, ttl_s=limits.label_ttl_s, clock_s=time.monotonic)
        meter = Meter(model, metrics)
        projector = Projector(store, model, on_fact=meter.take, on_skip=metrics.skipped_events.inc)
        dashboard: Dashboard
        queue = Queue(channel, model.changes, looked_at=lambda: dashboard.looked_at())
        dashboard = Dashboard(
            model, projector, queue,
            listen=settings.dashboard_listen, token=settings.token, deployment=settings.deployment,
        )  # fmt: skip
        dashboard.bind()
        servicer = TelemetryServicer(model, metrics, limits, service.draining)
        service.add(add_TelemetryServiceServicer_to_server, servicer, FULL_NAME)
        service.background("projection", projector.run)
        service.background("recoveries", meter.run)
        service.background("queue", queue.run)
        service.background("dashboard", dashboard.run)
        service.background("upkeep", meter.upkeep)
        await service.run()


if __name__ == "__main__":
    launch(serve)
