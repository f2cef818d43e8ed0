"""`python -m distroml.rendezvous`: the rendezvous service as a process."""

from __future__ import annotations

from distroml import observability
from distroml.eventstore.sqlite import open_event_store
from distroml.rendezvous.service import install
from distroml.rendezvous.settings import read_settings
from distroml.rpc import Service, launch
from distroml.statestore.sqlite import open_state_store


async def serve() -> None:
    """Serve until SIGTERM."""
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    async with Service(settings) as service:
        path = settings.data / "control.sqlite"
        events = open_event_store(path, deployment=settings.deployment)
        service.on_close(events.close)
        states = open_state_store(path, deployment=settings.deployment)
        service.on_close(states.close)
        install(service, settings, events, states)
        await service.run()


if __name__ == "__main__":
    launch(serve)
