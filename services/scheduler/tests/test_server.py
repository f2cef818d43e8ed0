"""Calls of users that meet the bounds of the settings, or the whole pool; the others: `tests/contract/scheduler`."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.rpc import RemoteError


def refused(code: str, reason: str) -> Any:
    """`pytest.raises` for a status and a reason."""

    def check(error: RemoteError) -> bool:
        assert error.status is getattr(grpc.StatusCode, code), error
        assert error.reason == reason, error
        return True

    return pytest.raises(RemoteError, check=check)


# ---- bounds


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


async def test_old_finished_jobs_leave_the_list_and_are_still_found(world_of: Any):
    world = world_of(finished_kept=2)
    await world.start()
    try:
        ids = [(await world.submit(f"j{index}")).id for index in range(4)]
        for id_ in ids:
            last = await world.jobs.CancelJob(pb.CancelJobRequest(job=id_))
        page = await world.jobs.ListJobs(pb.ListJobsRequest(min_position=last.position))
        assert {job.id for job in page.jobs} == set(ids[2:])
        assert (await world.get(ids[0])).state == pb.JOB_STATE_CANCELLED
    finally:
        await world.stop()


async def test_a_bundle_past_the_cap_is_refused_before_its_bytes_are_taken(world_of: Any, sha256: Any):
    world = world_of(bundle_cap_bytes=1000)
    await world.start()
    try:
        with refused("RESOURCE_EXHAUSTED", "BundleTooLarge") as caught:
            await world.jobs.PutBundle(iter([pb.PutBundleRequest(sha256=sha256(b"x"), size_bytes=1001)]))
        assert caught.value.metadata["cap_bytes"] == "1000"
    finally:
        await world.stop()


# ---- the whole pool


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
