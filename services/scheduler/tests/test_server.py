"""The calls of users, one by one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest

from distroml.api.common.v1 import replay_pb2
from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.rpc import RemoteError


def refused(code: str, reason: str) -> Any:
    """`pytest.raises` for a status and a reason."""

    def check(error: RemoteError) -> bool:
        assert error.status is getattr(grpc.StatusCode, code), error
        assert error.reason == reason, error
        return True

    return pytest.raises(RemoteError, check=check)


# ---- submit


async def test_every_wrong_field_is_named(world: Any):
    spec = pb.JobSpec(
        name="Not a Name",
        workers=pb.WorkerRange(min=4, max=2),
        env={"RANK": "0", "1X": ""},
        bundle="abc",
        retry=pb.RetryPolicy(max_failures=-2),
        checkpoint=pb.CheckpointPolicy(keep=0),
        hang_timeout_s=-1,
    )
    with refused("INVALID_ARGUMENT", "InvalidJobSpec") as caught:
        await world.jobs.SubmitJob(pb.SubmitJobRequest(spec=spec))
    assert {field for field, _ in caught.value.violations} == {
        "spec.name",
        "spec.command",
        "spec.workers.max",
        "spec.env[RANK]",
        "spec.env[1X]",
        "spec.bundle",
        "spec.retry.max_failures",
        "spec.checkpoint.keep",
        "spec.hang_timeout_s",
    }


async def test_defaults_are_filled_in(world: Any):
    job = await world.jobs.SubmitJob(pb.SubmitJobRequest(spec=pb.JobSpec(name="x", command=["a.py"])))
    spec = job.spec
    assert (spec.workers.min, spec.workers.max, spec.grace_s, spec.project) == (1, 1, 30, "default")
    assert (spec.retry.max_failures, spec.retry.max_preemptions, spec.checkpoint.keep) == (3, -1, 3)


async def test_a_bundle_must_be_there(world: Any, sha256: Any):
    with refused("INVALID_ARGUMENT", "InvalidJobSpec") as caught:
        await world.submit(bundle=sha256(b"code"))
    assert [field for field, _ in caught.value.violations] == ["spec.bundle"]


async def test_validate_only_changes_nothing_and_says_where_the_job_would_stand(world: Any):
    request = pb.SubmitJobRequest(spec=pb.JobSpec(name="x", command=["a.py"]), validate_only=True)
    assert (await world.jobs.SubmitJob(request)).reason == "NoNodes"
    await world.agent("a", 2)
    assert (await world.jobs.SubmitJob(request)).reason == "Starting"
    assert await world.events.streams("scheduler/job/") == []


async def test_a_repeated_request_is_answered_as_the_first_time(world: Any):
    first = await world.submit(request_id="req-1")
    await world.jobs.CancelJob(pb.CancelJobRequest(job=first.id))
    again = await world.submit(request_id="req-1")
    assert again.id == first.id
    assert again.state == pb.JOB_STATE_QUEUED, "the first answer, not the state now"
    assert len(await world.events.streams("scheduler/job/")) == 1
    with refused("ALREADY_EXISTS", "RequestIdReused"):
        await world.submit("another", request_id="req-1")


async def test_a_repeated_change_is_answered_even_when_it_would_be_refused_now(world: Any):
    job = await world.submit()
    pause = pb.PauseJobRequest(job=job.id, request_id="req-p")
    await world.jobs.PauseJob(pause)
    resume = pb.ResumeJobRequest(job=job.id, request_id="req-r")
    assert (await world.jobs.ResumeJob(resume)).state == pb.JOB_STATE_QUEUED
    assert (await world.jobs.ResumeJob(resume)).state == pb.JOB_STATE_QUEUED
    with refused("FAILED_PRECONDITION", "NotPaused"):
        await world.jobs.ResumeJob(pb.ResumeJobRequest(job=job.id, request_id="req-other"))


async def test_a_full_queue_refuses_and_says_so(world_of: Any):
    world = world_of(max_unfinished=2)
    await world.start()
    try:
        await world.submit("one", request_id="r1")
        two = await world.submit("two")

        async def seen() -> bool:
            return len((await world.jobs.ListJobs(pb.ListJobsRequest())).jobs) == 2

        await world.until(seen)
        with refused("RESOURCE_EXHAUSTED", "QueueFull"):
            await world.submit("three")
        assert (await world.submit("one", request_id="r1")).spec.name == "one"
        await world.jobs.CancelJob(pb.CancelJobRequest(job=two.id))

        async def taken() -> Any:
            try:
                return await world.submit("three")
            except RemoteError:
                return None

        await world.until(taken)
    finally:
        await world.stop()


# ---- one job


async def test_a_job_is_found_by_id_by_resource_name_and_by_its_name(world: Any):
    job = await world.submit("solo")
    for name in (job.id, job.name, "solo"):
        assert (await world.get(name)).id == job.id
    with refused("NOT_FOUND", "NoSuchJob"):
        await world.get("nobody")
    with refused("NOT_FOUND", "NoSuchJob"):
        await world.get(job.name.replace("default", "other"))
    with refused("INVALID_ARGUMENT", "InvalidArgument"):
        await world.get("projects/default/cats/x")
    other = await world.submit("solo")
    with refused("FAILED_PRECONDITION", "AmbiguousName") as caught:
        await world.get("solo")
    assert job.id in caught.value.message
    assert other.id in caught.value.message


async def test_two_callers_cannot_overwrite_one_another(world: Any):
    job = await world.submit()
    await world.jobs.SetPriority(pb.SetPriorityRequest(job=job.id, priority=3, expected_version=job.version))
    with refused("ABORTED", "VersionMismatch") as caught:
        await world.jobs.SetPriority(pb.SetPriorityRequest(job=job.id, priority=9, expected_version=job.version))
    assert caught.value.metadata["actual"] == str(job.version + 1)
    assert (await world.get(job.id)).spec.priority == 3


async def test_a_bad_range_names_the_field(world: Any):
    job = await world.submit()
    with refused("INVALID_ARGUMENT", "BadWorkerRange"):
        await world.jobs.ResizeJob(pb.ResizeJobRequest(job=job.id, min_workers=3, max_workers=2))


async def test_the_queue_says_why_each_job_waits(world: Any):
    await world.agent("a", 2)
    running = await world.submit("running", low=2)
    await world.state_of(running.id, "ADMITTED")
    low, high = await world.submit("low", low=1), await world.submit("high", low=2, priority=5)
    huge = await world.submit("huge", low=3, priority=9)

    async def settled() -> Any:
        queue = await world.jobs.GetQueue(pb.GetQueueRequest())
        return queue if len(queue.entries) == 3 else None

    queue = await world.until(settled)
    assert [(entry.job, entry.index, entry.reason) for entry in queue.entries] == [
        (huge.id, 1, "ExceedsCapacity"),
        (high.id, 2, "WaitingForSlots"),
        (low.id, 3, "BehindOthers"),
    ]
    answer = await world.jobs.ExplainJob(pb.ExplainJobRequest(job=low.id))
    assert (answer.reason, answer.queue_index, answer.free_slots, answer.total_slots) == ("BehindOthers", 3, 0, 2)
    assert high.id in answer.message
    assert answer.next_steps
    assert any("submitted by ann" in line for line in answer.history)


async def test_watching_shows_every_state_and_resumes_without_loss(world: Any):
    job = await world.submit()
    seen: list[pb.WatchJobResponse] = []

    async def watch(after: str, count: int) -> None:
        async for response in world.jobs.WatchJob(pb.WatchJobRequest(job=job.id, after=after)):
            if response.job.version != (seen[-1].job.version if seen else 0):
                seen.append(response)
            if len(seen) == count:
                return

    first = asyncio.create_task(watch("", 2))
    while not seen:
        await asyncio.sleep(0.01)
    await world.jobs.SetPriority(pb.SetPriorityRequest(job=job.id, priority=1))
    await asyncio.wait_for(first, 10)
    await world.jobs.SetPriority(pb.SetPriorityRequest(job=job.id, priority=2))
    await world.jobs.PauseJob(pb.PauseJobRequest(job=job.id))
    await asyncio.wait_for(watch(seen[-1].position, 4), 10)
    assert [response.job.spec.priority for response in seen] == [0, 1, 2, 2]
    assert seen[-1].job.state == pb.JOB_STATE_PAUSED
    versions = [response.job.version for response in seen]
    assert versions == sorted(set(versions))


async def test_events_of_all_services_in_one_order(world: Any):
    await world.agent("a", 2)
    job, other = await world.submit(), await world.submit("other")
    await world.state_of(job.id, "ADMITTED")
    await world.form(job.id, 1, 1)
    await world.state_of(job.id, "RUNNING")
    events = [
        event async for response in world.jobs.ListEvents(pb.ListEventsRequest(job=job.id)) for event in response.events
    ]
    assert [event.type for event in events] == [
        "scheduler.job.Submitted",
        "scheduler.job.Validated",
        "scheduler.job.Queued",
        "scheduler.job.Admitted",
        "scheduler.job.AttemptStarted",
        "rendezvous.generation.GenerationFormed",
        "scheduler.job.Started",
    ]
    assert json.loads(events[0].json)["spec"]["name"] == "gpt"
    assert (events[0].actor, events[0].deployment) == ("ann", "dep-1")
    # The reactor's events say what led to them.
    assert events[6].causation_id == events[5].id

    rest = [
        event
        async for response in world.jobs.ListEvents(pb.ListEventsRequest(job=job.id, after=events[4].position, limit=1))
        for event in response.events
    ]
    assert [event.id for event in rest] == [events[5].id]
    whole = [event async for response in world.jobs.ListEvents(pb.ListEventsRequest()) for event in response.events]
    assert {"scheduler/pool/default", "scheduler/node/a", f"scheduler/job/{other.id}"} <= {e.stream for e in whole}
    assert all(not event.data for event in whole if not event.public)


async def test_following_events(world: Any):
    job = await world.submit()
    seen: list[str] = []

    async def follow() -> None:
        async for response in world.jobs.ListEvents(pb.ListEventsRequest(job=job.id, follow=True)):
            seen.extend(event.type.rpartition(".")[2] for event in response.events)
            if "Cancelled" in seen:
                return

    task = asyncio.create_task(follow())
    while not seen:
        await asyncio.sleep(0.01)
    await world.jobs.CancelJob(pb.CancelJobRequest(job=job.id))
    await asyncio.wait_for(task, 10)
    assert seen == ["Submitted", "Validated", "Queued", "CancelRequested", "Cancelled"]


@pytest.mark.parametrize("after", ["nonsense", "other-log:3.0"])
async def test_positions_of_other_logs_are_refused(world: Any, after: str):
    with refused("INVALID_ARGUMENT", "InvalidArgument"):
        async for _ in world.jobs.ListEvents(pb.ListEventsRequest(after=after)):
            pass


async def test_logs_without_telemetry(world: Any):
    job = await world.submit()
    with refused("UNAVAILABLE", "TelemetryAway"):
        async for _ in world.jobs.StreamLogs(pb.StreamLogsRequest(job=job.id)):
            pass


# ---- replay


async def test_every_stream_folds_to_its_stored_state(world: Any):
    a = await world.agent("a", 2)
    job = await world.submit()
    await a.told(job.id)
    await world.form(job.id, 1, 1)
    running = await world.state_of(job.id, "RUNNING")
    await world.close_job(job.id, 1, "Succeeded")
    await world.state_of(job.id, "SUCCEEDED")
    verified = [response async for response in world.replay.Verify(replay_pb2.VerifyRequest())]
    assert {response.stream for response in verified} == {
        f"scheduler/job/{job.id}",
        "scheduler/node/a",
        "scheduler/pool/default",
    }
    assert all(not response.differences for response in verified)
    past = await world.replay.StateAt(replay_pb2.StateAtRequest(job=job.id, position=running.position))
    assert json.loads(past.states[0].json)["state"] == "running"
