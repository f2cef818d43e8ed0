from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from distroml.api.common.v1 import common_pb2
from distroml.api.common.v1.replay_pb2_grpc import ReplayServiceStub
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceStub
from distroml.events import Context, NewEvent, fresh_id
from distroml.eventstore import Append, Commit, EventStore
from distroml.eventstore import memory as event_memory
from distroml.objectstore.memory import open_object_store
from distroml.rpc import Service, connect
from distroml.scheduler.board import Board
from distroml.scheduler.compose import compose
from distroml.scheduler.settings import SchedulerSettings
from distroml.statestore import memory as state_memory
from distroml.statestore.memory import MemoryDatabase
from services.scheduler.tests.agents import Agent, until

TOKEN = "a-token-of-the-data-folder"
DEPLOYMENT = "dep-1"


@dataclass
class World:
    """A deployment in memory whose scheduler can be started, killed and started again."""

    folder: Path
    database: MemoryDatabase = field(default_factory=lambda: MemoryDatabase(DEPLOYMENT))
    overrides: dict[str, Any] = field(default_factory=dict)
    service: Service | None = None
    board: Board | None = None
    agents: list[Agent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.objects = open_object_store()
        self.events: EventStore = event_memory.open_event_store(self.database, deployment=DEPLOYMENT)
        self.state = state_memory.open_state_store(self.database)
        self._stack = AsyncExitStack()
        self._channel_stack = AsyncExitStack()

    async def start(self, telemetry: Any = None) -> None:
        settings = SchedulerSettings(
            service="scheduler",
            data=self.folder,
            token=TOKEN,
            deployment=DEPLOYMENT,
            drain_s=0.5,
            **{"role_ttl_s": 1, "debounce_s": 0.005, "node_ttl_s": 30, **self.overrides},
        )
        self._stack = AsyncExitStack()
        events = event_memory.open_event_store(self.database, deployment=DEPLOYMENT)
        state = state_memory.open_state_store(self.database)
        self.service = await self._stack.enter_async_context(Service(settings))
        self.board = compose(
            self.service, settings, events=events, state=state, objects=self.objects, telemetry=telemetry
        )
        await self.service.start()
        self.channel = connect(self.service.endpoint, TOKEN, actor="ann")
        self._stack.push_async_callback(self.channel.close, None)
        self.jobs: Any = JobServiceStub(self.channel)
        self.replay: Any = ReplayServiceStub(self.channel)

    async def stop(self) -> None:
        for agent in self.agents:
            await agent.close()
        self.agents.clear()
        await self._stack.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def agent(self, node: str, slots: int = 2, **more: Any) -> Agent:
        found = Agent(self.channel, node, slots, **more)
        self.agents.append(found)

        async def check() -> bool:
            assert found.error is None, found.error
            return found.desired is not None

        await until(check, f"{node} has a desired state")
        return found

    # ---- users

    async def submit(
        self, name: str = "gpt", *, low: int = 2, high: int = 0, request_id: str = "", **more: Any
    ) -> pb.Job:
        spec = spec_message(name, low, high or low, **more)
        return await self.jobs.SubmitJob(pb.SubmitJobRequest(spec=spec, request_id=request_id))

    async def until(self, check: Callable[[], Awaitable[Any]], what: str = "a condition") -> Any:
        return await until(check, what)

    async def get(self, job: str) -> pb.Job:
        return await self.jobs.GetJob(pb.GetJobRequest(job=job))

    async def state_of(self, job: str, state: str) -> pb.Job:
        async def check() -> pb.Job | None:
            found = await self.get(job)
            return found if pb.JobState.Name(found.state) == f"JOB_STATE_{state}" else None

        try:
            return await until(check, f"{job} is {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {await self.get(job)}") from None

    # ---- rendezvous

    async def rendezvous(self, job: str, *messages: Any) -> None:
        """Append public events of rendezvous by hand."""
        stream = f"rendezvous/job/{job}"
        version = await self.events.version(stream)
        context = Context(
            deployment=DEPLOYMENT, project="default", actor="agent", causation_id="c", correlation_id="c", time_ms=1
        )
        events = tuple(
            NewEvent(
                id=fresh_id("evt"),
                type=f"rendezvous.generation.{type(message).__name__}",
                schema=1,
                public=True,
                data=message.SerializeToString(),
            )
            for message in messages
        )
        await self.events.commit(Commit(context=context, appends=(Append(stream, version, events),)))

    async def form(self, job: str, attempt: int, generation: int, workers: int = 2) -> None:
        formed = rdzv.Generation(job=job, number=generation, world_size=workers, attempt=attempt)
        await self.rendezvous(job, rdzv.GenerationFormed(generation=formed))

    async def break_generation(self, job: str, generation: int, category: str = "SIGNAL") -> None:
        value = common_pb2.FailureCategory.Value(f"FAILURE_CATEGORY_{category}")
        await self.rendezvous(job, rdzv.GenerationBroken(number=generation, cause="worker exited", category=value))

    async def close_job(
        self, job: str, attempt: int, outcome: str, category: str = "UNSPECIFIED", message: str = ""
    ) -> None:
        value = common_pb2.FailureCategory.Value(f"FAILURE_CATEGORY_{category}")
        await self.rendezvous(job, rdzv.Closed(attempt=attempt, outcome=outcome, category=value, message=message))

    async def types(self, stream: str) -> list[str]:
        return [one.type.rpartition(".")[2] for one in await self.events.read_stream(stream)]


def spec_message(name: str, low: int, high: int, **more: Any) -> pb.JobSpec:
    return pb.JobSpec(name=name, command=["train.py"], workers=pb.WorkerRange(min=low, max=high), **more)


@pytest.fixture
def world_of(tmp_path: Path) -> Callable[..., World]:
    """A world that is not started yet, with other settings."""
    return lambda **overrides: World(tmp_path, overrides=overrides)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    found = World(tmp_path)
    await found.start()
    yield found
    await found.stop()


@pytest.fixture
def sha256() -> Callable[[bytes], str]:
    return lambda data: hashlib.sha256(data).hexdigest()
