"""The scheduler as a process: `python -m distroml.scheduler`."""

from __future__ import annotations

from distroml import observability
from distroml.eventstore.sqlite import open_event_store
from distroml.objectstore.filesystem import open_object_store
from distroml.rpc import Service, connect, launch
from distroml.scheduler.compose import compose
from distroml.scheduler.settings import read_settings
from distroml.statestore.sqlite import open_state_store


async def serve() -> None:
    """Open the stores, serve until SIGTERM, close them."""
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    async with Service(settings) as service:
        events = open_event_store(settings.data / "control.sqlite", deployment=settings.deployment)
        service.on_close(events.close)
        state = open_state_store(settings.data / "control.sqlite", deployment=settings.deployment)
        service.on_close(state.close)
        objects = open_object_store(settings.data / "objects")
        service.on_close(objects.close)
        endpoint = settings.peers.get("telemetry")
        telemetry = connect(endpoint, settings.token, actor="scheduler") if endpoint else None
        if telemetry is not None:
            service.on_close(lambda: telemetry.close(None))
        compose(service, settings, events=events, state=state, objects=objects, telemetry=telemetry)
        await service.run()


if __name__ == "__main__":
    launch(serve)
