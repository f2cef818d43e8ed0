"""`python -m distroml.relay`: the relay as a process; several of a deployment take turns."""

from __future__ import annotations

from functools import partial

from distroml import observability
from distroml.relay.settings import read_settings
from distroml.rpc import Service, launch, open_stores


async def serve() -> None:
    """Relay until SIGTERM."""
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    async with open_stores(settings) as stores, Service(settings) as service:
        # What it works with needs clients that embedded deployments do not have: opening the stores has told so.
        from distroml.relay.service import install

        assert stores.servers is not None, "settings name the servers"
        install(service, settings, stores.servers)
        service.background("stores", partial(stores.watch, service.report))
        await service.run()


if __name__ == "__main__":
    launch(serve)
