"""The scheduler as a process: `python -m distroml.scheduler`."""

from __future__ import annotations

from functools import partial

from distroml import observability
from distroml.rpc import Service, connect, launch, open_stores
from distroml.scheduler.compose import compose
from distroml.scheduler.settings import read_settings


async def serve() -> None:
    """Open the stores, serve until SIGTERM, close them."""
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    async with open_stores(settings) as stores, Service(settings) as service:
        service.background("stores", partial(stores.watch, service.report))
        endpoint = settings.peers.get("telemetry")
        telemetry = connect(endpoint, settings.token, actor="scheduler", tracing=service.tracing) if endpoint else None
        if telemetry is not None:
            service.on_close(lambda: telemetry.close(None))
        compose(
            service, settings, events=stores.events, state=stores.state, objects=stores.objects, telemetry=telemetry
        )
        await service.run()


if __name__ == "__main__":
    launch(serve)
