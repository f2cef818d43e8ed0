"""`python -m distroml.checkpoint`: the checkpoint service as a process."""

from __future__ import annotations

from functools import partial

from distroml import observability
from distroml.checkpoint.service import compose
from distroml.checkpoint.settings import read_settings
from distroml.rpc import Service, launch, open_stores


async def serve() -> None:
    """Serve until SIGTERM."""
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    async with open_stores(settings) as stores, Service(settings) as service:
        service.background("stores", partial(stores.watch, service.report))
        compose(service, settings, stores)
        await service.run()


if __name__ == "__main__":
    launch(serve)
