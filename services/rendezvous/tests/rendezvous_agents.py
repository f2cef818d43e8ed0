"""A real service on a real file, and agents that speak to it over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.api.rendezvous.v1.rendezvous_pb2_grpc import RendezvousServiceStub
from distroml.events import Context, NewEvent, fresh_id
from distroml.eventstore import Append, Commit, EventStore
from distroml.rendezvous.service import install
from distroml.rendezvous.settings import RendezvousSettings
from distroml.rpc import Service, connect, open_stores

TOKEN = "a-token"
PATIENCE_S = 20.0


class Plane:
    """One replica of rendezvous."""

    def __init__(self, service: Service, events: EventStore) -> None:
        self.service, self.events = service, events

    async def event_names(self, job: str = "j") -> list[str]:
        return [e.type.rpartition(".")[2] for e in await self.events.read_stream(f"rendezvous/job/{job}")]

    async def fence(self, job: str = "j") -> int:
        parts, _ = await self.events.parts(f"fences/{job}")
        return int(parts.get(f"fences/{job}", b"0"))

    async def scheduler_says(self, *names: str, job: str = "j") -> None:
        """Append public events of the scheduler by hand."""
        context = Context(
            deployment="dep-1", project="default", actor="test", causation_id="c", correlation_id="c", time_ms=1
        )
        new = tuple(
            NewEvent(id=fresh_id("evt"), type=f"scheduler.job.{name}", schema=1, public=True, data=b"")
            for name in names
        )
        await self.events.commit(Commit(context=context, appends=(Append(f"scheduler/job/{job}", 0, new),)))


@asynccontextmanager
async def plane(
    folder: Path, *, member_ttl_s: int = 30, listen: str = "127.0.0.1:0", retire_after_s: int = 3600
) -> AsyncIterator[Plane]:
    settings = RendezvousSettings(
        service="rendezvous",
        data=folder,
        token=TOKEN,
        deployment="dep-1",
        listen=listen,
        member_ttl_s=member_ttl_s,
        retire_after_s=retire_after_s,
        drain_s=1.0,
    )
    async with open_stores(settings) as stores, Service(settings) as service:
        install(service, settings, stores.events, stores.state)
        await service.start()
        yield Plane(service, stores.events)


class Agent:
    """One agent with one stream at a time."""

    def __init__(self, endpoint: str, node: str, agent_id: str = "", *, attempt: int = 1, job: str = "j") -> None:
        self.job, self.node, self.agent_id, self.attempt = job, node, agent_id or f"agent-{node}", attempt
        self.workers = [f"{job}.{attempt}.{node}.0"]
        self._channel = connect(endpoint, TOKEN, actor=f"agent/{node}")
        self._call: Any = None
        self._reports = 0

    async def __aenter__(self) -> Agent:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.hang_up()
        await self._channel.close()

    async def hang_up(self) -> None:
        """Break the stream without a word."""
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def joining(self, nodes: Sequence[str] = ("a", "b"), **more: Any) -> pb.JoinNode:
        defaults = {"min_workers": len(nodes), "failures_left": 3, "join_timeout_s": 30}
        return pb.JoinNode(
            job=self.job,
            project="default",
            attempt=self.attempt,
            node=self.node,
            agent_id=self.agent_id,
            workers=self.workers,
            expected=[pb.ExpectedMember(node=node, workers=1) for node in nodes],
            store_endpoint=f"{self.node}.host:29500",
            address=f"{self.node}.host",
            **{**defaults, **more},
        )

    async def join(self, nodes: Sequence[str] = ("a", "b"), **more: Any) -> pb.JoinAccepted:
        await self.hang_up()
        self._call = RendezvousServiceStub(self._channel).Join()
        await self.send(join=self.joining(nodes, **more))
        return await self.expect("accepted")

    async def send(self, **kind: Any) -> None:
        # Whoever reads is told how the stream ended.
        with suppress(asyncio.InvalidStateError):
            await self._call.write(pb.JoinRequest(**kind))

    async def dial(self, **kind: Any) -> None:
        """Open a stream with any first message."""
        self._call = RendezvousServiceStub(self._channel).Join()
        await self.send(**kind)

    async def ready(self, after: int = 0) -> None:
        await self.send(ready=pb.MemberReady(after=after, workers=self.workers))

    async def report(self, generation: int, *, report_id: str = "", **what: Any) -> None:
        self._reports += 1
        await self.send(
            report=pb.WorkerReport(
                report_id=report_id or f"{self.agent_id}-{self._reports}",
                worker=self.workers[0],
                generation=generation,
                **what,
            )
        )

    async def exits(self, generation: int, **how: Any) -> None:
        await self.report(generation, exited=pb.WorkerExited(**how))

    async def next(self) -> pb.JoinResponse:
        async with asyncio.timeout(PATIENCE_S):
            return await self._call.read()

    async def expect(self, kind: str) -> Any:
        """The next message of this kind, whatever else comes before it."""
        while True:
            response = await self.next()
            assert isinstance(response, pb.JoinResponse), f"the stream ended before {kind}"
            if response.WhichOneof("kind") == kind:
                return getattr(response, kind)

    async def ended(self) -> None:
        """Read to the end of the stream; raises what it ended with."""
        while isinstance(await self.next(), pb.JoinResponse):
            pass


async def form(*agents: Agent, after: int = 0) -> pb.Generation:
    """All say that they are ready; they are told of the same generation."""
    for agent in agents:
        await agent.ready(after)
    formed = [await agent.expect("formed") for agent in agents]
    assert all(one == formed[0] for one in formed)
    return formed[0]
