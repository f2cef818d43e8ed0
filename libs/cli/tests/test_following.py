"""Following a job past what goes wrong between it and us: calls that break off are made again, refusals are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import StatusCode

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.cli import following
from distroml.rpc.errors import RemoteError

AWAY = RemoteError(StatusCode.UNAVAILABLE, "Unavailable", "nobody listens")
REFUSED = RemoteError(StatusCode.PERMISSION_DENIED, "Forbidden", "not yours")
RUNNING, SUCCEEDED = jobs_pb2.JOB_STATE_RUNNING, jobs_pb2.JOB_STATE_SUCCEEDED

Step = Any
"""What a stream brings next: a message, an error to raise, or an event to wait for or, called, to set."""


async def played(steps: list[Step]) -> AsyncIterator[Any]:
    for step in steps:
        if isinstance(step, Exception):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()
        elif callable(step):
            step()
        else:
            yield step


class Jobs:
    """The scheduler: each call is answered by the next script, and the last one by those after it, too."""

    def __init__(self, watches: list[list[Step]], logs: list[list[Step]] | None = None) -> None:
        self._watches, self._logs = watches, logs or [[]]
        self.asked: list[str] = []
        self.read = 0

    def WatchJob(self, request: jobs_pb2.WatchJobRequest) -> AsyncIterator[Any]:
        self.asked.append(request.after)
        return played(self._watches[min(len(self.asked), len(self._watches)) - 1])

    def StreamLogs(self, request: jobs_pb2.StreamLogsRequest) -> AsyncIterator[Any]:
        assert request.follow
        self.read += 1
        return played(self._logs[min(self.read, len(self._logs)) - 1])


def plane(jobs: Jobs) -> Any:
    async def summary(_: object) -> telemetry_pb2.JobSummary:
        return telemetry_pb2.JobSummary()

    return SimpleNamespace(jobs=jobs, telemetry=SimpleNamespace(GetJobSummary=summary), login_url="")


def at(position: str, state: jobs_pb2.JobState) -> jobs_pb2.WatchJobResponse:
    return jobs_pb2.WatchJobResponse(position=position, job=jobs_pb2.Job(id="job-1", state=state))


def lines(*texts: str) -> jobs_pb2.StreamLogsResponse:
    return jobs_pb2.StreamLogsResponse(lines=[jobs_pb2.LogLine(text=text) for text in texts])


async def seen(jobs: Jobs) -> list[int]:
    return [job.state async for job in following.watch(plane(jobs), "job-1")]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time that is only waited for passes at once."""
    sleep: Callable[[float], Any] = asyncio.sleep
    monkeypatch.setattr(following.asyncio, "sleep", lambda _: sleep(0))
    monkeypatch.setattr(following, "QUIET_S", 0.0)
    monkeypatch.setattr(following, "NOTHING_S", 0.0)


async def test_a_watch_that_breaks_off_goes_on_at_its_position() -> None:
    jobs = Jobs([[at("p1", RUNNING), AWAY], [AWAY], [at("p2", SUCCEEDED)]])
    assert await seen(jobs) == [RUNNING, SUCCEEDED]
    assert jobs.asked == ["", "p1", "p1"]


async def test_a_scheduler_that_stays_away_is_given_up_and_each_answer_renews_the_patience() -> None:
    away = [[AWAY]] * 60
    jobs = Jobs([*away, [at("p1", RUNNING), AWAY], *away[1:], [at("p2", SUCCEEDED)]])
    assert await seen(jobs) == [RUNNING, SUCCEEDED]
    jobs = Jobs([[AWAY]])
    with pytest.raises(RemoteError, match="nobody listens"):
        await seen(jobs)
    assert len(jobs.asked) == 61


async def test_a_watch_that_is_refused_is_not_tried_again() -> None:
    jobs = Jobs([[REFUSED]])
    with pytest.raises(RemoteError, match="not yours"):
        await seen(jobs)
    assert len(jobs.asked) == 1


async def test_output_that_breaks_off_is_printed_on_and_no_line_twice(capsys: pytest.CaptureFixture[str]) -> None:
    printed, never = asyncio.Event(), asyncio.Event()
    logs = [[lines("one", "two"), AWAY], [AWAY], [lines("one", "two", "three"), printed.set, never]]
    jobs = Jobs([[at("p1", RUNNING), printed, at("p2", SUCCEEDED)]], logs)
    async with asyncio.timeout(20):
        assert await following.Follower(plane(jobs), jobs_pb2.Job(id="job-1")).to_the_end() == 0
    assert capsys.readouterr().out == "[0] one\n[0] two\n[0] three\n"
    assert jobs.read == 3


async def test_output_that_is_refused_is_told_once_and_the_job_is_followed(capsys: pytest.CaptureFixture[str]) -> None:
    ended = asyncio.Event()
    logs = [[lines("one"), ended.set, REFUSED]]
    jobs = Jobs([[at("p1", RUNNING), ended, at("p2", SUCCEEDED)]], logs)
    async with asyncio.timeout(20):
        assert await following.Follower(plane(jobs), jobs_pb2.Job(id="job-1")).to_the_end() == 0
    told = capsys.readouterr()
    assert told.out == "[0] one\n"
    assert told.err.count("output is not shown: not yours") == 1
    assert jobs.read == 1
