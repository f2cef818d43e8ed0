"""Whom the demo kills, and whom not."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from distroml.api.common.v1 import common_pb2
from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.cli.demo.story import Story

STEPS = 10


@dataclass
class Jobs:
    """A job whose rank 1 is the process `pid`; it succeeds once `over` is set."""

    pid: int
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def ListEvents(self, _: jobs_pb2.ListEventsRequest) -> AsyncIterator[jobs_pb2.ListEventsResponse]:
        started = json.dumps({"rank": 1, "worker": "w1", "pid": str(self.pid)})
        yield jobs_pb2.ListEventsResponse(events=[common_pb2.Event(type="rendezvous.worker.Started", json=started)])

    async def WatchJob(self, _: jobs_pb2.WatchJobRequest) -> AsyncIterator[jobs_pb2.WatchJobResponse]:
        await self.over.wait()
        yield jobs_pb2.WatchJobResponse(job=jobs_pb2.Job(id="job-1", state=jobs_pb2.JOB_STATE_SUCCEEDED))


@dataclass
class Telemetry:
    """Says the summaries of `told` one after the other, then ends the job."""

    jobs: Jobs
    told: list[telemetry_pb2.JobSummary]

    async def GetJobSummary(self, _: telemetry_pb2.GetJobSummaryRequest) -> telemetry_pb2.JobSummary:
        if len(self.told) == 1:
            self.jobs.over.set()
        return self.told.pop(0) if len(self.told) > 1 else self.told[0]


@dataclass
class Plane:
    jobs: Jobs
    telemetry: Telemetry


class View:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, _: telemetry_pb2.JobSummary) -> None:
        pass


def summary(step: int, checkpoints: int = 1) -> telemetry_pb2.JobSummary:
    return telemetry_pb2.JobSummary(step=step, total_steps=STEPS, checkpoints=checkpoints)


async def course(pid: int, *told: telemetry_pb2.JobSummary) -> Story:
    jobs = Jobs(pid)
    plane: Any = Plane(jobs, Telemetry(jobs, list(told)))
    story = Story(plane, cast("Any", View()), Path(), kill_at=0.4, job="job-1")
    await story._to_the_end()
    return story


@pytest.fixture
def worker() -> Any:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


async def test_rank_1_is_killed_once_after_a_checkpoint_and_its_part_of_the_steps(worker: Any) -> None:
    story = await course(worker.pid, summary(5, checkpoints=0), summary(3), summary(5), summary(6), summary(10))
    assert worker.wait() == -signal.SIGKILL
    assert (story.killed_worker, story.killed_at_step) == ("w1", 5)
    assert story.killed_at_ms > 0


async def test_nobody_is_killed_after_the_last_step(worker: Any) -> None:
    story = await course(worker.pid, summary(3), summary(10), summary(10))
    assert worker.poll() is None
    assert not story.killed_worker


async def test_a_worker_that_has_just_ended_was_not_killed_by_the_demo(worker: Any) -> None:
    worker.kill()
    worker.wait()
    story = await course(worker.pid, summary(5), summary(10))
    assert (story.killed_worker, story.killed_at_ms) == ("", 0)
    assert not any("kill -9" in text for text in cast("View", story.view).said)
