"""What users change: what is taken in, what is refused and why, and what a repeated or a colliding call gets."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.events import fresh_id
from distroml.rpc import RemoteError
from tests.contract.calls import drained, fields_of, refused, until
from tests.contract.scheduler.conftest import NEVER_FITS, Scheduler


async def test_every_wrong_field_is_named(scheduler: Scheduler) -> None:
    spec = pb.JobSpec(
        name="Not a Name",
        workers=pb.WorkerRange(min=4, max=2),
        env={"RANK": "0", "1X": "", "DISTROML_JOB": "x", "DISTROML_TRACE_STEPS": "1"},
        bundle="abc",
        retry=pb.RetryPolicy(max_failures=-2),
        checkpoint=pb.CheckpointPolicy(keep=0),
        hang_timeout_s=-1,
    )
    with refused("INVALID_ARGUMENT", "InvalidJobSpec") as caught:
        await scheduler.jobs.SubmitJob(pb.SubmitJobRequest(spec=spec))
    assert fields_of(caught) == {
        "spec.name",
        "spec.command",
        "spec.workers.max",
        "spec.env[RANK]",
        "spec.env[1X]",
        "spec.env[DISTROML_JOB]",
        "spec.bundle",
        "spec.retry.max_failures",
        "spec.checkpoint.keep",
        "spec.hang_timeout_s",
    }
    with refused("INVALID_ARGUMENT", "InvalidJobSpec") as absent:
        await scheduler.submit(bundle="ab" * 32)
    assert fields_of(absent) == {"spec.bundle"}
    with refused("INVALID_ARGUMENT", "InvalidArgument") as long:
        await scheduler.submit(request_id="x" * 200)
    assert fields_of(long) == {"request_id"}


async def test_a_job_is_taken_in_with_its_defaults(scheduler: Scheduler) -> None:
    gang = pb.WorkerRange(min=NEVER_FITS)
    request = pb.SubmitJobRequest(spec=pb.JobSpec(name="x", command=["a.py"], workers=gang))
    job = await scheduler.jobs.SubmitJob(request)
    spec = job.spec
    assert (spec.workers.min, spec.workers.max, spec.grace_s, spec.project) == (NEVER_FITS, NEVER_FITS, 30, "default")
    assert (spec.retry.max_failures, spec.retry.max_preemptions, spec.checkpoint.keep) == (3, -1, 3)
    assert (job.name, job.state, job.actor) == (f"projects/default/jobs/{job.id}", pb.JOB_STATE_QUEUED, "ann")
    assert job.version > 0
    assert job.position
    assert job.submitted_at.ToMilliseconds() > 0
    cancelled = await scheduler.jobs.CancelJob(pb.CancelJobRequest(job=job.id, why="enough"))
    assert (cancelled.state, cancelled.version) == (pb.JOB_STATE_CANCELLED, job.version + 2)


async def test_validate_only_changes_nothing_and_says_where_the_job_would_stand(scheduler: Scheduler) -> None:
    await scheduler.agent(fresh_id("node"))
    before = await scheduler.service.events.streams("scheduler/job/")
    request = pb.SubmitJobRequest(spec=scheduler.spec("x", workers=1), validate_only=True)

    async def starts() -> bool:
        preview = await scheduler.jobs.SubmitJob(request)
        assert (preview.id, preview.name, preview.version) == ("", "", 0)
        return preview.reason == "Starting"

    await until(starts, "it would start at once")
    huge = pb.SubmitJobRequest(spec=scheduler.spec("x"), validate_only=True)
    assert (await scheduler.jobs.SubmitJob(huge)).reason == "ExceedsCapacity"
    assert await scheduler.service.events.streams("scheduler/job/") == before


async def test_a_repeated_request_is_answered_as_the_first_time(scheduler: Scheduler) -> None:
    id_ = fresh_id("req")
    first = await scheduler.submit(request_id=id_)
    await scheduler.jobs.CancelJob(pb.CancelJobRequest(job=first.id))
    again = await scheduler.submit(request_id=id_)
    assert again.id == first.id
    assert again.state == pb.JOB_STATE_QUEUED, "the first answer, not the state now"
    with refused("ALREADY_EXISTS", "RequestIdReused") as reused:
        await scheduler.submit("another", request_id=id_)
    assert reused.value.metadata["request_id"] == id_
    page = await scheduler.jobs.ListJobs(
        pb.ListJobsRequest(project=scheduler.project, min_position=(await scheduler.get(first.id)).position)
    )
    assert [job.id for job in page.jobs] == [first.id]


async def test_a_repeated_change_is_answered_even_when_it_would_be_refused_now(scheduler: Scheduler) -> None:
    job = await scheduler.submit()
    pause = pb.PauseJobRequest(job=job.id, request_id=fresh_id("req"))
    assert (await scheduler.jobs.PauseJob(pause)).state == pb.JOB_STATE_PAUSED
    resume = pb.ResumeJobRequest(job=job.id, request_id=fresh_id("req"))
    answers = [await scheduler.jobs.ResumeJob(resume) for _ in range(2)]
    assert [(answer.state, answer.version) for answer in answers] == [(pb.JOB_STATE_QUEUED, answers[0].version)] * 2
    assert (await scheduler.jobs.PauseJob(pause)).state == pb.JOB_STATE_PAUSED
    assert (await scheduler.get(job.id)).state == pb.JOB_STATE_QUEUED
    with refused("ALREADY_EXISTS", "RequestIdReused"):
        await scheduler.jobs.PauseJob(pb.PauseJobRequest(job=job.id, request_id=resume.request_id))
    with refused("FAILED_PRECONDITION", "NotPaused"):
        await scheduler.jobs.ResumeJob(pb.ResumeJobRequest(job=job.id, request_id=fresh_id("req")))


CHANGES: dict[str, type[Any]] = {
    "CancelJob": pb.CancelJobRequest,
    "PauseJob": pb.PauseJobRequest,
    "ResumeJob": pb.ResumeJobRequest,
    "ResizeJob": pb.ResizeJobRequest,
    "SetPriority": pb.SetPriorityRequest,
}


async def test_two_callers_cannot_overwrite_one_another(scheduler: Scheduler) -> None:
    job = await scheduler.submit()
    colliding = [
        scheduler.jobs.SetPriority(pb.SetPriorityRequest(job=job.id, priority=priority, expected_version=job.version))
        for priority in (3, 9)
    ]
    outcomes = await asyncio.gather(*colliding, return_exceptions=True)
    [lost] = [one for one in outcomes if isinstance(one, RemoteError)]
    [won] = [one for one in outcomes if isinstance(one, pb.Job)]
    assert (lost.status, lost.reason) == (grpc.StatusCode.ABORTED, "VersionMismatch")
    assert lost.metadata["actual"] == str(won.version) == str(job.version + 1)
    now = await scheduler.get(job.id)
    assert (now.spec.priority, now.version) == (won.spec.priority, won.version)
    for call, request in CHANGES.items():
        with refused("ABORTED", "VersionMismatch"):
            await getattr(scheduler.jobs, call)(request(job=job.id, expected_version=job.version))
    assert (await scheduler.get(job.id)).version == won.version


async def test_what_a_jobs_state_does_not_allow_is_refused_with_the_reason(scheduler: Scheduler) -> None:
    job = await scheduler.submit()
    with refused("FAILED_PRECONDITION", "NotPaused"):
        await scheduler.jobs.ResumeJob(pb.ResumeJobRequest(job=job.id))
    with refused("INVALID_ARGUMENT", "BadWorkerRange") as caught:
        await scheduler.jobs.ResizeJob(pb.ResizeJobRequest(job=job.id, min_workers=3, max_workers=2))
    assert fields_of(caught) == {"min_workers"}
    resized = await scheduler.jobs.ResizeJob(pb.ResizeJobRequest(job=job.id, min_workers=201, max_workers=202))
    assert (resized.spec.workers.min, resized.spec.workers.max) == (201, 202)
    await scheduler.jobs.CancelJob(pb.CancelJobRequest(job=job.id))
    for call in ("PauseJob", "ResumeJob", "ResizeJob", "SetPriority"):
        with refused("FAILED_PRECONDITION", "JobFinished"):
            await getattr(scheduler.jobs, call)(CHANGES[call](job=job.id))


async def test_a_job_is_found_by_id_by_resource_name_and_by_its_name(scheduler: Scheduler) -> None:
    name = fresh_id("solo")
    job = await scheduler.submit(name)
    async with scheduler.service.channel() as channel:
        get = channel.unary_unary(
            "/distroml.api.scheduler.v1.JobService/GetJob", pb.GetJobRequest.SerializeToString, pb.Job.FromString
        )

        async def by(text: str) -> pb.Job:
            return await get(pb.GetJobRequest(job=text), metadata=(("distroml-project", scheduler.project),))

        for text in (job.id, job.name, name):
            assert (await by(text)).id == job.id
        with refused("NOT_FOUND", "NoSuchJob"):
            await by(job.name.replace(scheduler.project, "other"))
        other = await scheduler.submit(name)
        with refused("FAILED_PRECONDITION", "AmbiguousName") as caught:
            await by(name)
    assert job.id in caught.value.message
    assert other.id in caught.value.message


@pytest.mark.parametrize(
    ("job", "code", "reason"),
    [("nobody", "NOT_FOUND", "NoSuchJob"), ("projects/default/cats/x", "INVALID_ARGUMENT", "InvalidArgument")],
)
async def test_no_call_takes_a_job_that_does_not_exist(scheduler: Scheduler, job: str, code: str, reason: str) -> None:
    calls = {**CHANGES, "GetJob": pb.GetJobRequest, "ExplainJob": pb.ExplainJobRequest}
    for call, request in calls.items():
        with refused(code, reason):
            await getattr(scheduler.jobs, call)(request(job=job))
    streams = {"WatchJob": pb.WatchJobRequest, "ListEvents": pb.ListEventsRequest, "StreamLogs": pb.StreamLogsRequest}
    for call, request in streams.items():
        with refused(code, reason):
            await drained(getattr(scheduler.jobs, call)(request(job=job)))
