"""`python -m distroml.agent`: serve this node; `--end-workers`: end what runs on it, without a control plane."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from grpc.aio import Channel

from distroml import observability
from distroml.agent.adapters.lines import LinesApart
from distroml.agent.adapters.shipping import LineCounts
from distroml.agent.agent import Agent, end_leftovers
from distroml.agent.settings import log_store, own_environment, read_settings
from distroml.rpc import Service, connect, launch


async def serve() -> None:
    """Run the agent until SIGTERM. Workers go on unless `DATA/node/down` says otherwise."""
    settings = read_settings()
    # Settings of the log store that are wrong are told here, not by the process that would use them.
    log_store(settings)
    observability.setup(settings.service, deployment=settings.deployment, level=settings.log_level)
    async with Service(settings) as service:

        def channel(service_name: str) -> Channel:
            made = connect(settings.peer(service_name), settings.token, actor="agent", tracing=service.tracing)
            service.on_close(partial(made.close, None))
            return made

        counts, lines = LineCounts(settings.log_bytes_per_s), None
        if settings.log_bytes_per_s:
            lines = LinesApart(count=counts.count, tell=partial(service.report, "log store"))
        agent = Agent(
            settings,
            own_environment(),
            scheduler=channel("scheduler"),
            rendezvous=channel("rendezvous"),
            checkpoint=channel("checkpoint"),
            telemetry=channel("telemetry"),
            tracing=service.tracing,
            lines=lines,
        )
        service.on_close(agent.close)
        await agent.start()
        service.background("node stream", agent.node.stream.run)
        service.background("telemetry push", agent.node.telemetry.run)
        service.background("lines not shipped", counts.report)
        service.background("watch", agent.watch)
        service.on_drain(agent.go_down)
        if lines is not None:
            service.background("lines", lines.run)
            service.on_drain(lines.stop)
        await service.run()


async def end_workers() -> None:
    """End every worker and store host of the data folder, whoever started them."""
    settings = read_settings()
    count = await end_leftovers(settings.data / "node" / "workers", keep=set())
    print(f"ended {count} processes")


if __name__ == "__main__":
    if "--end-workers" in sys.argv[1:]:
        asyncio.run(end_workers())
    else:
        launch(serve)
