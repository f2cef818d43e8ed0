"""Jobs that the scheduler has forgotten come from history; one that both know is the scheduler's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from grpc import StatusCode

from distroml.api.scheduler.v1 import jobs_pb2 as j
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli.client import Plane
from distroml.cli.job_commands import found_or_recalled, listed
from distroml.rpc.errors import RemoteError

DONE = j.JOB_STATE_SUCCEEDED


def job(id_: str, at_s: int, reason: str = "") -> j.Job:
    made = j.Job(id=id_, state=DONE, reason=reason)
    made.submitted_at.FromSeconds(at_s)
    return made


class Services:
    """A scheduler that knows the newest jobs, and telemetry that knows all, a page of two at a time."""

    def __init__(self, kept: Sequence[j.Job], past: Sequence[j.Job], *, away: bool = False) -> None:
        self.kept, self.past, self.away = kept, past, away
        self.jobs = self.telemetry = self

    async def ListJobs(self, request: j.ListJobsRequest) -> j.ListJobsResponse:
        return j.ListJobsResponse(jobs=self.kept[: request.page_size])

    async def GetJob(self, request: j.GetJobRequest) -> j.Job:
        for one in self.kept:
            if one.id == request.job:
                return one
        raise RemoteError(StatusCode.NOT_FOUND, "NoSuchJob", "there is no such job")

    async def ListHistory(self, request: t.ListHistoryRequest) -> t.ListHistoryResponse:
        if self.away:
            raise RemoteError(StatusCode.UNAVAILABLE, "HistoryAway", "PostgreSQL at h:1/d: it is away")
        assert list(request.states) == [DONE]
        start = int(request.page_token or 0)
        end = start + min(2, request.page_size)
        more = str(end) if end < len(self.past) else ""
        return t.ListHistoryResponse(jobs=self.past[start:end], next_page_token=more, position="log:9.0")

    async def GetHistory(self, request: t.GetHistoryRequest) -> t.GetHistoryResponse:
        for one in self.past:
            if one.id == request.job:
                return t.GetHistoryResponse(job=one, position="log:9.0")
        raise RemoteError(StatusCode.NOT_FOUND, "JobNotFound", "history knows no such job")


def plane(services: Services) -> Plane:
    return cast("Any", services)


KEPT = [job("job-5", 5, "scheduler"), job("job-4", 4, "scheduler")]
PAST = [job(f"job-{i}", i, "history") for i in (5, 4, 3, 2, 1)]


async def test_lists_go_on_where_the_scheduler_ends() -> None:
    asked = plane(Services(KEPT, PAST))
    found = await listed(asked, [DONE], 100, history=True)
    assert [(one.id, one.reason) for one in found] == [
        ("job-5", "scheduler"), ("job-4", "scheduler"), ("job-3", "history"), ("job-2", "history"),
        ("job-1", "history"),
    ]  # fmt: skip
    assert found[-1].position == "log:9.0"
    assert [one.id for one in await listed(asked, [DONE], 3, history=True)] == ["job-5", "job-4", "job-3"]
    assert len(await listed(asked, [DONE], 100, history=False)) == 2


async def test_without_history_the_list_says_that_older_jobs_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    found = await listed(plane(Services(KEPT, PAST, away=True)), [DONE], 100, history=True)
    assert len(found) == 2
    assert "older jobs are missing: PostgreSQL at h:1/d: it is away" in capsys.readouterr().err


async def test_a_forgotten_job_is_recalled_and_an_unknown_one_is_the_schedulers_error() -> None:
    asked = plane(Services(KEPT, PAST))
    assert await found_or_recalled(asked, "job-5") == (KEPT[0], False)
    recalled, from_history = await found_or_recalled(asked, "job-2")
    assert (recalled.reason, recalled.position, from_history) == ("history", "log:9.0", True)
    PAST[3].spec.project = "theirs"
    assert (await found_or_recalled(asked, "projects/theirs/jobs/job-2"))[0].id == "job-2"
    for unknown in ("job-9", "projects/ours/jobs/job-2"):
        with pytest.raises(RemoteError, match="there is no such job"):
            await found_or_recalled(asked, unknown)
