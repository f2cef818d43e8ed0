from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceStub
from distroml.events import fresh_id
from distroml.rpc import RemoteError
from services.scheduler.tests.agents import Agent
from tests.contract.calls import until
from tests.contract.targets import Running

NEVER_FITS = 200


@dataclass
class Scheduler:
    """A scheduler to its clients. What a test began here ends with it: another test may use the same process."""

    service: Running
    jobs: Any
    channel: grpc.aio.Channel
    project: str = field(default_factory=lambda: fresh_id("project"))
    _submitted: list[str] = field(default_factory=list[str])
    _agents: list[Agent] = field(default_factory=list[Agent])

    async def submit(
        self, name: str = "gpt", *, workers: int = NEVER_FITS, request_id: str = "", **more: Any
    ) -> pb.Job:
        """A job that waits for ever, unless it asks for less."""
        spec = self.spec(name, workers=workers, **more)
        job = await self.jobs.SubmitJob(pb.SubmitJobRequest(spec=spec, request_id=request_id))
        self._submitted.append(job.id)
        return job

    def spec(self, name: str, *, workers: int = NEVER_FITS, **more: Any) -> pb.JobSpec:
        """A specification in this test's own project."""
        gang = pb.WorkerRange(min=workers, max=workers)
        return pb.JobSpec(name=name, project=self.project, command=["train.py"], workers=gang, **more)

    async def get(self, job: str) -> pb.Job:
        return await self.jobs.GetJob(pb.GetJobRequest(job=job))

    async def agent(self, node: str, slots: int = 2, **more: Any) -> Agent:
        """An agent that is connected and knows what it is to run."""
        found = Agent(self.channel, node, slots, **more)
        self._agents.append(found)

        async def check() -> bool:
            assert found.error is None, found.error
            return found.desired is not None

        await until(check, f"{node} has a desired state")
        return found

    async def tidy(self) -> None:
        """End the test's jobs and take its nodes out of the pool."""
        for job in self._submitted:
            # It may have ended in the test.
            with suppress(RemoteError):
                await self.jobs.CancelJob(pb.CancelJobRequest(job=job))
        for node in {agent.node for agent in self._agents}:
            await self.jobs.CordonNode(pb.CordonNodeRequest(node=node))
        for agent in self._agents:
            await agent.close()


@pytest.fixture
def named() -> str:
    return "scheduler"


@pytest.fixture
async def scheduler(service: Running) -> AsyncIterator[Scheduler]:
    async with service.channel() as channel, service.channel(actor="agent") as agents:
        found = Scheduler(service, JobServiceStub(channel), agents)
        yield found
        await found.tidy()
