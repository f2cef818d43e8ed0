from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.api.scheduler.v1 import jobs_pb2 as jobs
from distroml.api.telemetry.v1 import telemetry_pb2 as pb
from distroml.api.telemetry.v1.telemetry_pb2_grpc import TelemetryServiceStub
from distroml.events import fresh_id
from distroml.logstore import Block
from tests.contract.targets import Running


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Telemetry:
    """Telemetry to its clients, and one job that they tell it of."""

    service: Running
    stub: Any
    job: str = field(default_factory=lambda: fresh_id("job"))
    node: str = field(default_factory=lambda: fresh_id("node"))
    _sequence: int = 0

    async def push(self, **records: Any) -> pb.PushResponse:
        """One batch, acknowledged."""
        self._sequence += 1
        call = self.stub.Push()
        await call.write(pb.PushRequest(node=self.node, sequence=self._sequence, **records))
        response: pb.PushResponse = await call.read()
        await call.done_writing()
        assert response.sequence == self._sequence
        return response

    async def written(self, lines: Sequence[pb.LogRecord]) -> None:
        """Lines on all the ways that an agent sends them: what is searched may not be telemetry's own."""
        await self.push(logs=lines)
        await self.service.ship([_block_of(one) for one in lines])

    def steps(self, first: int, last: int, *, rank: int = 0, job: str = "") -> list[pb.StepSample]:
        """Samples of steps of one rank; a step takes a quarter of a second."""
        at = now_ms()
        return [
            pb.StepSample(
                job=job or self.job,
                rank=rank,
                generation=1,
                step=step,
                total_steps=1000,
                at_ms=at - (last - step) * 250,
                loss=1 / step,
                step_s=0.25,
                samples=8,
                tokens=800,
                world_size=2,
            )
            for step in range(first, last + 1)
        ]

    def lines(self, texts: Sequence[str], *, offset: int = 0, rank: int = 0) -> list[pb.LogRecord]:
        """Lines of one rank's output, one after another in its file."""
        at = now_ms()
        return [
            pb.LogRecord(
                job=self.job,
                rank=rank,
                worker=f"{self.job}.1.{self.node}.{rank}",
                generation=1,
                stream="stdout",
                text=text,
                at_ms=at + index,
                offset=offset + 100 * index,
            )
            for index, text in enumerate(texts)
        ]

    async def submitted(self) -> None:
        """The scheduler's first event about the job."""
        spec = jobs.JobSpec(name="gpt", project="default", command=["train.py"])
        event = s.JobSubmitted(job=self.job, spec=spec, at_ms=now_ms(), actor="ann")
        await self.service.tell(f"scheduler/job/{self.job}", ("scheduler.job.Submitted", event))


def _block_of(line: pb.LogRecord) -> Block:
    return Block(
        job=line.job,
        worker=line.worker,
        incarnation=line.incarnation,
        stream=line.stream,
        rank=line.rank,
        generation=line.generation,
        at_ms=line.at_ms,
        offset=line.offset,
        data=line.text.encode() + b"\n",
    )


@pytest.fixture
def named() -> str:
    return "telemetry"


@pytest.fixture
async def telemetry(service: Running) -> AsyncIterator[Telemetry]:
    async with service.channel(actor="agent") as channel:
        yield Telemetry(service, TelemetryServiceStub(channel))
