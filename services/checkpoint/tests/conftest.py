from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from distroml.api.checkpoint.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from distroml.api.common.v1.replay_pb2_grpc import ReplayServiceStub
from distroml.checkpoint.catalogues import Catalogues
from distroml.checkpoint.service import compose
from distroml.checkpoint.settings import CheckpointSettings
from distroml.events import Context, NewEvent, fresh_id
from distroml.eventstore import Append, Commit, EventStore
from distroml.objectstore import ObjectStore
from distroml.objectstore.filesystem import open_object_store
from distroml.rpc import RemoteError, Service, connect, open_stores
from distroml.statestore import StateStore
from distroml.statestore.sqlite import open_state_store
from services.checkpoint.tests.workers import Workers

JOB = "job-a"
TOKEN = "a-token"


@dataclass
class Plane:
    """A running checkpoint service, and hands on what lies below it."""

    service: Service
    stub: CheckpointServiceStub
    replay: ReplayServiceStub
    catalogues: Catalogues
    objects: ObjectStore
    keys: StateStore
    data: Path
    events: EventStore

    async def say(self, stream: str, *names: str, at_ms: int = 1) -> None:
        """Append public events of other services by hand."""
        context = Context(
            deployment="dep-1", project="default", actor="test", causation_id="c", correlation_id="c", time_ms=at_ms
        )
        new = tuple(NewEvent(id=fresh_id("evt"), type=name, schema=1, public=True, data=b"") for name in names)
        await self.events.commit(Commit(context=context, appends=(Append(stream, 0, new),)))

    async def fence(self, generation: int, job: str = "job-a") -> None:
        """What rendezvous does when it opens a generation."""
        entry = await self.keys.get(f"fences/{job}")
        await self.keys.cas(f"fences/{job}", str(generation).encode(), expected=entry.revision if entry else 0)


Start = Callable[..., Awaitable[Plane]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def started(**more: int) -> Plane:
            settings = CheckpointSettings(
                service="checkpoint",
                data=tmp_path,
                token=TOKEN,
                deployment="dep-1",
                drain_s=1.0,
                reactor_ttl_s=1,
                **more,
            )
            stores = await stack.enter_async_context(open_stores(settings))
            service = await stack.enter_async_context(Service(settings))
            catalogues = compose(service, settings, stores)
            await service.start()
            channel = await stack.enter_async_context(connect(service.endpoint, TOKEN, actor="test"))
            keys = open_state_store(tmp_path / "control.sqlite")
            stack.push_async_callback(keys.close)
            return Plane(
                service,
                CheckpointServiceStub(channel),
                ReplayServiceStub(channel),
                catalogues,
                open_object_store(tmp_path / "objects"),
                keys,
                tmp_path,
                stores.events,
            )

        yield started


@pytest.fixture
async def plane(start: Start) -> Plane:
    return await start()


async def eventually(check: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Poll until true; fails after the deadline."""
    async with asyncio.timeout(timeout_s):
        while not await check():
            await asyncio.sleep(0.02)


async def save(plane: Plane, workers: Workers, step: int, keep: int = 2) -> str:
    opened = [await plane.stub.BeginSave(workers.begin(step, keep)) for _ in range(workers.world_size)]
    assert len({one.save_id for one in opened}) == 1
    for rank in range(workers.world_size):
        answer = await plane.stub.ReportShard(workers.write(rank, step, opened[rank]))
        assert answer.committed == (rank == workers.world_size - 1)
        assert answer.missing == workers.world_size - 1 - rank
    return answer.manifest_hash


async def refused(call) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await call
    return caught.value
