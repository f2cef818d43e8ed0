"""Where the service of a contract test runs: in this process on memory, or as a process as users start it, with its
stores in its data folder or on real servers.

A test knows only `Running`: it never sees which target it runs against, and a shared process holds what other tests
left in it. Another target is one more entry of `TARGETS`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from google.protobuf.message import Message

from distroml.events import Context, NewEvent, Recorded, fresh_id
from distroml.eventstore import Append, Commit, EventStore
from distroml.logstore import Block
from distroml.logstore.settings import ElasticSettings
from distroml.objectstore import ObjectStore
from distroml.rpc import Stores, connect
from distroml.statestore import StateStore
from tests.contract.calls import PATIENCE_S
from tests.contract.inprocess import SERVE, TOKEN, in_memory
from tests.contract.processes import Processes

OWNERS = ("scheduler", "rendezvous", "checkpoint")
"""Services with streams of their own."""
SERVICES = (*OWNERS, "telemetry")


@dataclass(frozen=True)
class Running:
    """One service that answers, and the stores that it has in common with the services around it."""

    name: str
    deployment: str
    endpoint: str
    stores: Stores
    token: str = TOKEN
    log_store: ElasticSettings | None = None

    @property
    def events(self) -> EventStore:
        return self.stores.events

    @property
    def state(self) -> StateStore:
        return self.stores.state

    @property
    def objects(self) -> ObjectStore:
        return self.stores.objects

    def channel(self, *, actor: str = "ann") -> grpc.aio.Channel:
        """A channel as every client of the service makes it."""
        return connect(self.endpoint, self.token, actor=actor)

    async def tell(self, stream: str, *events: tuple[str, Message]) -> None:
        """Write public events as another service does."""
        new = tuple(
            NewEvent(id=fresh_id("evt"), type=name, schema=1, public=True, data=body.SerializeToString())
            for name, body in events
        )
        context = Context(
            deployment=self.deployment,
            project="default",
            actor="other",
            causation_id="cause",
            correlation_id="correlation",
            time_ms=time.time_ns() // 1_000_000,
        )
        append = Append(stream, await self.events.version(stream), new)
        await self.events.commit(Commit(context=context, appends=(append,)))

    @property
    def on_servers(self) -> bool:
        """Whether lines and history are on servers of their own; else they are with telemetry."""
        return self.log_store is not None

    async def ship(self, blocks: Sequence[Block]) -> None:
        """What agents do beside pushing lines: bring them to the server where they are searched, if there is one."""
        if self.log_store is None:
            return
        # Takes a while to import: only where it is used.
        from distroml.logstore import elastic

        counts: Counter[str] = Counter()
        async with elastic.connect(self.log_store) as client:
            shipper = elastic.Shipper(
                client,
                self.log_store.namespace,
                host="node",
                max_bytes=1 << 20,
                count=lambda outcome, number: counts.update({outcome: number}),
                tell=lambda why: None,
            )
            shipping = asyncio.create_task(shipper.run())
            for block in blocks:
                shipper.add(block)
            assert await shipper.flush(PATIENCE_S)
            shipping.cancel()
            await asyncio.wait([shipping])
        assert counts == {"shipped": sum(block.count for block in blocks)}

    async def written(self, stream: str) -> list[Recorded]:
        """Every event of a stream."""
        return list(await self.events.read_stream(stream))

    async def fence(self, job: str, generation: int) -> None:
        """What rendezvous does when it opens a generation."""
        entry = await self.state.get(f"fences/{job}")
        await self.state.cas(f"fences/{job}", str(generation).encode(), expected=entry.revision if entry else 0)


Target = Callable[[pytest.FixtureRequest, str], AbstractAsyncContextManager[Running]]


@asynccontextmanager
async def _in_process(request: pytest.FixtureRequest, service: str) -> AsyncIterator[Running]:
    folder: Path = request.getfixturevalue("tmp_path")
    stores = in_memory("dep-1")
    async with SERVE[service](folder, "dep-1", stores) as (endpoint, token):
        yield Running(service, "dep-1", endpoint, stores, token)


def _processes(fixture: str) -> Target:
    @asynccontextmanager
    async def target(request: pytest.FixtureRequest, service: str) -> AsyncIterator[Running]:
        processes: Processes = request.getfixturevalue(fixture)
        async with processes.serving(service) as found:
            yield Running(service, found.deployment, found.endpoint, found.stores, log_store=found.log_store)

    return target


TARGETS: Mapping[str, Target] = {
    "in-process": _in_process,
    "process": _processes("processes"),
    "stack": _processes("processes_on_the_stack"),
}
SLOW = ("stack",)
"""Targets that start real servers: their tests are end-to-end tests."""
