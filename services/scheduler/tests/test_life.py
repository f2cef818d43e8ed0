"""A job's life through the real calls, with agents as plain clients and rendezvous' events appended by hand."""

from __future__ import annotations

from typing import Any

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1 import nodes_pb2 as npb


async def test_from_submit_to_success(world: Any):
    node = await world.agent("a", 2)
    job = await world.submit()
    assert job.state == pb.JOB_STATE_QUEUED
    assert job.name == f"projects/default/jobs/{job.id}"
    assert job.actor == "ann"

    told = await node.told(job.id)
    assert (list(told.slots), told.attempt, told.failures_left) == (["cpu-0", "cpu-1"], 1, 3)
    assert [(member.node, member.workers) for member in told.gang] == [("a", 2)]
    assert told.spec.command == ["train.py"]

    await world.form(job.id, 1, 1)
    running = await world.state_of(job.id, "RUNNING")
    assert (running.generation, running.attempt) == (1, 1)
    assert [(part.node, list(part.slots)) for part in running.placement] == [("a", ["cpu-0", "cpu-1"])]
    observation = node.observe(job.id, 1, npb.ATTEMPT_PHASE_RUNNING, step=50, total_steps=100)
    await node.acked(observation)

    await world.close_job(job.id, 1, "Succeeded")
    done = await world.state_of(job.id, "SUCCEEDED")
    assert (done.progress.step, done.progress.total_steps) == (50, 100)
    assert not done.placement

    # Its slots stay held until the agent says that nothing runs there any more.
    await node.told(job.id, stop="Finished")
    assert [slot.job for slot in (await world.jobs.ListNodes(pb.ListNodesRequest())).nodes[0].slots] == [job.id] * 2
    node.stopped(job.id, 1)
    await node.rid_of(job.id)
    assert [slot.job for slot in (await world.jobs.ListNodes(pb.ListNodesRequest())).nodes[0].slots] == ["", ""]
    assert await world.types(f"scheduler/job/{job.id}") == [
        "Submitted",
        "Validated",
        "Queued",
        "Admitted",
        "AttemptStarted",
        "Started",
        "Progressed",
        "Succeeded",
    ]


async def test_the_next_job_gets_the_slots_only_when_nothing_runs_on_them(world: Any):
    node = await world.agent("a", 2)
    first, second = await world.submit("one"), await world.submit("two")
    await node.told(first.id)
    await world.form(first.id, 1, 1)
    await world.close_job(first.id, 1, "Succeeded")
    await node.told(first.id, stop="Finished")
    assert (await world.get(second.id)).reason == "WaitingForSlots"
    node.stopped(first.id, 1)
    await node.told(second.id)


async def test_pause_and_resume(world: Any):
    node = await world.agent("a", 2)
    job = await world.submit()
    await node.told(job.id)
    await world.form(job.id, 1, 1)
    await world.state_of(job.id, "RUNNING")
    await world.jobs.PauseJob(pb.PauseJobRequest(job=job.id))
    told = await node.told(job.id, stop="Paused")
    assert told.stop.checkpoint
    assert told.stop.grace_s == 30
    node.stopped(job.id, 1)
    await world.state_of(job.id, "PAUSED")
    await node.rid_of(job.id)
    await world.jobs.ResumeJob(pb.ResumeJobRequest(job=job.id))
    assert (await node.told(job.id)).attempt == 2
    await world.form(job.id, 2, 2)
    again = await world.state_of(job.id, "RUNNING")
    assert (again.attempt, again.generation, again.preemptions) == (2, 2, 0)


async def test_cancel(world: Any):
    node = await world.agent("a", 2)
    job = await world.submit()
    await node.told(job.id)
    answer = await world.jobs.CancelJob(pb.CancelJobRequest(job=job.id, why="wrong data"))
    assert answer.state == pb.JOB_STATE_CANCELLING
    assert not (await node.told(job.id, stop="Cancelled")).stop.checkpoint
    node.stopped(job.id, 1)
    done = await world.state_of(job.id, "CANCELLED")
    assert "wrong data" in done.message
    await node.rid_of(job.id)


async def test_growing_while_running(world: Any):
    a, b = await world.agent("a", 2), await world.agent("b", 2)
    job = await world.submit(low=1, high=2)
    await a.told(job.id)
    await world.form(job.id, 1, 1)
    await world.state_of(job.id, "RUNNING")
    await world.jobs.ResizeJob(pb.ResizeJobRequest(job=job.id, min_workers=3, max_workers=4))
    await b.told(job.id)
    told = await a.told(job.id)
    assert [(member.node, member.workers) for member in told.gang] == [("a", 2), ("b", 2)]
    assert (told.spec.workers.min, told.spec.workers.max) == (3, 4)
    assert (await world.get(job.id)).attempt == 1


async def test_shrinking_gives_slots_back_when_nothing_runs_on_them(world: Any):
    a, b = await world.agent("a", 2), await world.agent("b", 1)
    job = await world.submit(low=3)
    await b.told(job.id)
    await world.form(job.id, 1, 1, 3)
    await world.state_of(job.id, "RUNNING")
    a.apply()
    await world.jobs.ResizeJob(pb.ResizeJobRequest(job=job.id, min_workers=1, max_workers=1))
    await b.told(job.id, stop="Resized")

    other = await world.submit("other", low=2)

    async def waits() -> bool:
        return (await world.get(other.id)).reason == "WaitingForSlots"

    await world.until(waits)
    b.stopped(job.id, 1)
    await b.rid_of(job.id)
    assert await waits()
    # The slot that left the gang on `a` is free once the agent says that the newer state is so.
    assert list((await a.told(job.id)).slots) == ["cpu-0"]
    a.apply()
    await b.told(other.id)
    assert list((await a.told(other.id)).slots) == ["cpu-1"]


async def test_failures_are_counted_and_rendezvous_has_the_last_word(world: Any):
    node = await world.agent("a", 2)
    job = await world.submit(retry=pb.RetryPolicy(max_failures=1))
    await node.told(job.id)
    await world.form(job.id, 1, 1)
    await world.break_generation(job.id, 1)
    await world.form(job.id, 1, 2)
    await world.break_generation(job.id, 2, "NODE_LOST")
    await world.form(job.id, 1, 3)
    await world.break_generation(job.id, 3, "EXCEPTION")
    await world.close_job(job.id, 1, "Failed", "EXCEPTION", "ValueError: no such file")
    failed = await world.state_of(job.id, "FAILED")
    assert (failed.failures, failed.generation) == (2, 3)
    assert "ValueError: no such file" in failed.message


async def test_a_failed_setup_is_tried_again_and_then_fails_the_job(world: Any):
    node = await world.agent("a", 2)
    job = await world.submit(retry=pb.RetryPolicy(max_failures=1))
    for attempt in (1, 2):
        while (await node.told(job.id)).attempt != attempt:
            await node.rid_of(job.id)
        node.observe(job.id, attempt, npb.ATTEMPT_PHASE_FAILED, category=5, message="no interpreter /x/python")
        await node.told(job.id, stop="Preempted" if attempt == 1 else "Failed")
        node.stopped(job.id, attempt)
    failed = await world.state_of(job.id, "FAILED")
    assert (failed.failures, failed.preemptions, failed.reason) == (2, 0, "SetupFailed")
    assert "no interpreter /x/python" in failed.message


async def test_an_attempt_that_was_stopped_behind_our_back_is_requeued(world_of: Any):
    world = world_of(silence_s=0.2)
    await world.start()
    try:
        node = await world.agent("a", 2)
        job = await world.submit()
        await node.told(job.id)
        node.stopped(job.id, 1)
        await node.rid_of(job.id)
        assert (await node.told(job.id)).attempt == 2
        types = await world.types(f"scheduler/job/{job.id}")
        assert types[5:8] == ["PreemptionRequested", "Preempted", "Requeued"]
    finally:
        await world.stop()
