"""`python -m distroml.checkpoint`: the checkpoint service as a process."""

from __future__ import annotations

from distroml import observability
from distroml.checkpoint.service import compose
from distroml.checkpoint.settings import read_settings
from distroml.rpc import Service, launch


async def serve() -> None:
    """Serve until SIGTERM."""
    settings = read_settings()
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    async with Service(settings) as service:
        compose(service, settings)
        await service.run()


if __name__ == "__main__":
    launch(serve)
