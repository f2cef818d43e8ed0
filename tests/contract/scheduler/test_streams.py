"""Streams of what happens: they resume at any position, with nothing lost and nothing twice."""

from __future__ import annotations

import asyncio
import json

import pytest

from distroml.api.common.v1.common_pb2 import Event
from distroml.api.scheduler.v1 import jobs_pb2 as pb
from tests.contract.calls import PATIENCE_S, drained, fields_of, refused
from tests.contract.scheduler.conftest import Scheduler


async def change(scheduler: Scheduler) -> pb.Job:
    """A job that was changed four times since it was submitted."""
    job = await scheduler.submit()
    for priority in (1, 2):
        await scheduler.jobs.SetPriority(pb.SetPriorityRequest(job=job.id, priority=priority))
    await scheduler.jobs.PauseJob(pb.PauseJobRequest(job=job.id))
    await scheduler.jobs.CancelJob(pb.CancelJobRequest(job=job.id))
    return job


async def test_watching_shows_the_job_now_then_each_change_and_resumes_anywhere(scheduler: Scheduler) -> None:
    job = await change(scheduler)
    newest = await scheduler.get(job.id)

    async def watch(after: str, count: int) -> list[pb.WatchJobResponse]:
        seen: list[pb.WatchJobResponse] = []
        async with asyncio.timeout(PATIENCE_S):
            async for response in scheduler.jobs.WatchJob(pb.WatchJobRequest(job=job.id, after=after)):
                seen.append(response)
                if len(seen) == count:
                    return seen
        raise AssertionError(f"the stream ended after {len(seen)} of {count}")

    [now] = await watch("", 1)
    assert (now.job.version, now.job.state) == (newest.version, pb.JOB_STATE_CANCELLED)
    submitted = (await scheduler.service.written(f"scheduler/job/{job.id}"))[job.version - 1]
    whole = await watch(str(submitted.position), 4)
    assert [(one.job.spec.priority, pb.JobState.Name(one.job.state)) for one in whole] == [
        (1, "JOB_STATE_QUEUED"),
        (2, "JOB_STATE_QUEUED"),
        (2, "JOB_STATE_PAUSED"),
        (2, "JOB_STATE_CANCELLED"),
    ]
    for index, one in enumerate(whole[:-1]):
        rest = await watch(one.position, 3 - index)
        assert [again.job.version for again in rest] == [later.job.version for later in whole[index + 1 :]]
        assert [again.position for again in rest] == [later.position for later in whole[index + 1 :]]


async def test_a_watch_ends_with_its_callers_deadline_and_goes_on_from_where_it_was(scheduler: Scheduler) -> None:
    job = await scheduler.submit()
    seen: list[pb.WatchJobResponse] = []
    with refused("DEADLINE_EXCEEDED", "DeadlineExceeded") as late:
        async for response in scheduler.jobs.WatchJob(pb.WatchJobRequest(job=job.id), timeout=2):
            seen.append(response)
    assert late.value.is_transient
    await scheduler.jobs.SetPriority(pb.SetPriorityRequest(job=job.id, priority=5))
    async with asyncio.timeout(PATIENCE_S):
        after = pb.WatchJobRequest(job=job.id, after=seen[-1].position)
        news = await anext(aiter(scheduler.jobs.WatchJob(after)))
    assert (news.job.spec.priority, news.job.version) == (5, seen[-1].job.version + 1)


async def events_of(scheduler: Scheduler, **request: object) -> list[Event]:
    stream = scheduler.jobs.ListEvents(pb.ListEventsRequest(**request))
    return [event for response in await drained(stream) for event in response.events]


async def test_events_come_in_one_order_and_from_any_position(scheduler: Scheduler) -> None:
    job = await change(scheduler)
    whole = await events_of(scheduler, job=job.id)
    assert [event.type.rpartition(".")[2] for event in whole] == [
        "Submitted",
        "Validated",
        "Queued",
        "PriorityChanged",
        "PriorityChanged",
        "PauseRequested",
        "Paused",
        "CancelRequested",
        "Cancelled",
    ]
    for index, event in enumerate(whole):
        assert [one.id for one in await events_of(scheduler, job=job.id, after=event.position)] == [
            one.id for one in whole[index + 1 :]
        ]
    paged: list[Event] = []
    while page := await events_of(scheduler, job=job.id, limit=2, after=paged[-1].position if paged else ""):
        assert len(page) <= 2
        paged += page
    assert [one.id for one in paged] == [one.id for one in whole]

    first = whole[0]
    assert (first.actor, first.deployment, first.project) == ("ann", scheduler.service.deployment, scheduler.project)
    assert (first.stream, first.version, first.schema_version) == (f"scheduler/job/{job.id}", 1, 1)
    assert first.public
    assert first.correlation_id
    assert json.loads(first.json)["spec"]["name"] == "gpt"
    everything = await events_of(scheduler)
    assert {one.id for one in whole} <= {one.id for one in everything}
    assert all(not event.data and not event.json for event in everything if not event.public)


async def test_following_gives_what_comes_after_what_is_there(scheduler: Scheduler) -> None:
    job = await scheduler.submit()
    seen: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        async for response in scheduler.jobs.ListEvents(pb.ListEventsRequest(job=job.id, follow=True)):
            seen += [event.type.rpartition(".")[2] for event in response.events]
            if seen == ["Submitted", "Validated", "Queued"]:
                await scheduler.jobs.CancelJob(pb.CancelJobRequest(job=job.id))
            if "Cancelled" in seen:
                break
    assert seen == ["Submitted", "Validated", "Queued", "CancelRequested", "Cancelled"]


@pytest.mark.parametrize("after", ["nonsense", "another-log:3.0"])
async def test_positions_of_other_logs_are_refused(scheduler: Scheduler, after: str) -> None:
    job = await scheduler.submit()
    for stream in (
        scheduler.jobs.ListEvents(pb.ListEventsRequest(after=after)),
        scheduler.jobs.WatchJob(pb.WatchJobRequest(job=job.id, after=after)),
    ):
        with refused("INVALID_ARGUMENT", "InvalidArgument") as caught:
            await drained(stream)
        assert fields_of(caught) == {"after"}
    with refused("INVALID_ARGUMENT", "InvalidArgument") as negative:
        await events_of(scheduler, limit=-1)
    assert fields_of(negative) == {"limit"}


async def test_logs_without_telemetry(scheduler: Scheduler) -> None:
    job = await scheduler.submit()
    with refused("UNAVAILABLE", "TelemetryAway"):
        await drained(scheduler.jobs.StreamLogs(pb.StreamLogsRequest(job=job.id)))
