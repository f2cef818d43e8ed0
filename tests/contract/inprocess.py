"""Each service's real servicers on a real socket of this process, over stores in memory."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from distroml.checkpoint.service import compose as compose_checkpoint
from distroml.checkpoint.settings import CheckpointSettings
from distroml.eventstore.memory import open_event_store
from distroml.objectstore.memory import open_object_store
from distroml.rendezvous.service import install as install_rendezvous
from distroml.rendezvous.settings import RendezvousSettings
from distroml.rpc import Service, Stores
from distroml.scheduler.compose import compose as compose_scheduler
from distroml.scheduler.settings import SchedulerSettings
from distroml.statestore.memory import MemoryDatabase, open_state_store
from distroml.telemetry.settings import Limits

TOKEN = "a-token"
DRAIN_S = 0.5

TELEMETRY_TESTS = Path(__file__).parents[2] / "services" / "telemetry" / "tests"

Served = tuple[str, str]
"""An endpoint, and the token for it."""
Serve = Callable[[Path, str, Stores], AbstractAsyncContextManager[Served]]


def in_memory(deployment: str) -> Stores:
    """Stores that are gone with the test."""
    database = MemoryDatabase(deployment)
    objects = open_object_store()
    return Stores(open_event_store(database, deployment=deployment), open_state_store(database), lambda: objects)


@asynccontextmanager
async def _scheduler(folder: Path, deployment: str, stores: Stores) -> AsyncIterator[Served]:
    settings = SchedulerSettings(
        service="scheduler", data=folder, token=TOKEN, deployment=deployment, drain_s=DRAIN_S, role_ttl_s=1
    )
    async with Service(settings) as service:
        compose_scheduler(
            service, settings, events=stores.events, state=stores.state, objects=stores.objects, telemetry=None
        )
        await service.start()
        yield service.endpoint, TOKEN


@asynccontextmanager
async def _rendezvous(folder: Path, deployment: str, stores: Stores) -> AsyncIterator[Served]:
    settings = RendezvousSettings(
        service="rendezvous", data=folder, token=TOKEN, deployment=deployment, drain_s=DRAIN_S
    )
    async with Service(settings) as service:
        install_rendezvous(service, settings, stores.events, stores.state)
        await service.start()
        yield service.endpoint, TOKEN


@asynccontextmanager
async def _checkpoint(folder: Path, deployment: str, stores: Stores) -> AsyncIterator[Served]:
    settings = CheckpointSettings(
        service="checkpoint", data=folder, token=TOKEN, deployment=deployment, drain_s=DRAIN_S, reactor_ttl_s=1
    )
    async with Service(settings) as service:
        compose_checkpoint(service, settings, stores)
        await service.start()
        yield service.endpoint, TOKEN


@asynccontextmanager
async def _telemetry(folder: Path, deployment: str, stores: Stores) -> AsyncIterator[Served]:
    """As its own tests put it together: without a dashboard, which can be built once in a process only."""
    # That folder's modules know one another by their bare names.
    if str(TELEMETRY_TESTS) not in sys.path:
        sys.path.insert(0, str(TELEMETRY_TESTS))
    from world import TOKEN as WORLD_TOKEN
    from world import World

    async with World(folder, Limits(), stores.events).running() as world:
        yield world.service.endpoint, WORLD_TOKEN


SERVE: Mapping[str, Serve] = {
    "scheduler": _scheduler,
    "rendezvous": _rendezvous,
    "checkpoint": _checkpoint,
    "telemetry": _telemetry,
}
"""By service: serves it on a free port, in a folder, for a deployment, from its stores."""
