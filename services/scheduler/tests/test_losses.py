"""What dies while a job runs: nodes, agents, the scheduler itself."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1 import nodes_pb2 as npb


@pytest.fixture
async def short_lived(world_of: Any) -> AsyncIterator[Any]:
    """Nodes are lost after two seconds without a heartbeat."""
    world = world_of(node_ttl_s=2)
    await world.start()
    yield world
    await world.stop()


async def test_a_lost_node_costs_a_preemption_and_the_job_runs_again(short_lived: Any):
    world = short_lived
    a, b = await world.agent("a", 1), await world.agent("b", 1)
    job = await world.submit(low=2)
    await b.told(job.id)
    await world.form(job.id, 1, 1)
    await world.state_of(job.id, "RUNNING")
    await b.close()

    await a.told(job.id, stop="Preempted")
    assert (await world.get(job.id)).reason == "NodeLost"
    node = {node.id: node for node in (await world.jobs.ListNodes(pb.ListNodesRequest())).nodes}["b"]
    assert node.state == pb.NODE_STATE_LOST
    a.stopped(job.id, 1)
    queued = await world.state_of(job.id, "QUEUED")
    assert (queued.preemptions, queued.failures) == (1, 0)

    async def explained() -> Any:
        found = await world.jobs.ExplainJob(pb.ExplainJobRequest(job=job.id))
        return found if found.reason == "ExceedsCapacity" else None

    answer = await world.until(explained)
    assert "nothing was heard of b" in answer.message
    assert any("taken off its slots (NodeLost)" in line for line in answer.history)

    await world.agent("b", 1)
    assert (await a.told(job.id)).attempt == 2


async def test_a_node_that_comes_back_runs_nothing_new_before_it_ended_the_old(short_lived: Any):
    world = short_lived
    a = await world.agent("a", 1)
    job = await world.submit(low=1)
    await a.told(job.id)
    await world.form(job.id, 1, 1)
    await a.close()
    await world.state_of(job.id, "QUEUED")

    running = npb.AttemptObservation(job=job.id, attempt=1, phase=npb.ATTEMPT_PHASE_RUNNING)
    back = await world.agent("a", 1, agent=a.agent_id, attempts=[running])
    assert not back.desired.attempts
    # Cycles go by, and still the node is not given the job: its old process may be there.
    await asyncio.sleep(0.3)
    assert (await world.get(job.id)).state == pb.JOB_STATE_QUEUED
    back.apply()
    assert (await back.told(job.id)).attempt == 2


async def test_an_agent_that_is_replaced_loses_its_stream_and_the_job_goes_on(world: Any):
    old = await world.agent("a", 2)
    job = await world.submit()
    await old.told(job.id)
    running = npb.AttemptObservation(job=job.id, attempt=1, phase=npb.ATTEMPT_PHASE_RUNNING)
    new = await world.agent("a", 2, attempts=[running])
    assert (await new.told(job.id)).attempt == 1

    async def ended() -> Any:
        return old.error

    error = await world.until(ended)
    assert error.reason == "AgentReplaced"


async def test_two_machines_cannot_share_a_name(world: Any):
    await world.agent("a", 2)
    with pytest.raises(AssertionError, match="NodeNameTaken"):
        await world.agent("a", 2, boot="another-boot")


async def test_the_scheduler_is_restarted_while_a_job_runs(world: Any):
    a = await world.agent("a", 2)
    job = await world.submit()
    waiting = await world.submit("next")
    await a.told(job.id)
    await world.form(job.id, 1, 1)
    before = await world.state_of(job.id, "RUNNING")
    await world.stop()
    # While it is away rendezvous goes on.
    await world.form(job.id, 1, 2)
    await world.start()

    async def caught_up() -> bool:
        return (await world.get(job.id)).generation == 2

    await world.until(caught_up)
    after = await world.get(job.id)
    assert (after.state, after.attempt, after.placement) == (before.state, before.attempt, before.placement)
    a = await world.agent("a", 2)
    await a.told(job.id)
    await world.close_job(job.id, 1, "Succeeded")
    await a.told(job.id, stop="Finished")
    a.stopped(job.id, 1)
    await a.told(waiting.id)


async def test_a_restarted_scheduler_gives_every_node_a_full_lease(short_lived: Any):
    world = short_lived
    a = await world.agent("a", 2)
    job = await world.submit()
    await a.told(job.id)
    await world.form(job.id, 1, 1)
    await world.state_of(job.id, "RUNNING")
    await world.stop()
    # Longer than the lease: nobody could have renewed it.
    await asyncio.sleep(2.5)
    await world.start()
    a = await world.agent("a", 2)
    await a.told(job.id)
    await asyncio.sleep(1.5)
    assert (await world.get(job.id)).state == pb.JOB_STATE_RUNNING


async def test_an_observation_is_recorded_once(world: Any):
    a = await world.agent("a", 2)
    job = await world.submit(retry=pb.RetryPolicy(max_failures=3))
    await a.told(job.id)
    failed = {"phase": npb.ATTEMPT_PHASE_FAILED, "category": 5, "message": "no bundle", "observation_id": "obs-1"}
    a.observe(job.id, 1, **failed)
    await a.told(job.id, stop="Preempted")
    await a.acked("obs-1")
    a.acks.clear()
    # The acknowledgement was lost: the agent dials again and repeats what it has on its disk.
    a = await world.agent("a", 2, agent=a.agent_id)
    a.observe(job.id, 1, **failed)
    a.observe(job.id, 1, npb.ATTEMPT_PHASE_STOPPED, observation_id="obs-2")
    await a.acked("obs-1", "obs-2")
    assert (await world.get(job.id)).failures == 1


async def test_an_observation_that_makes_no_sense_is_acknowledged_and_changes_nothing(world: Any):
    a = await world.agent("a", 2)
    job = await world.submit()
    await a.told(job.id)
    unknown = a.observe("job-nobody-knows", 1, npb.ATTEMPT_PHASE_FAILED, message="x")
    old = a.observe(job.id, 7, npb.ATTEMPT_PHASE_STOPPED)
    await a.acked(unknown, old)
    assert (await world.get(job.id)).state == pb.JOB_STATE_ADMITTED


async def test_a_cordoned_node_takes_nothing_new_and_is_drained_when_it_is_empty(world: Any):
    a = await world.agent("a", 2)
    job = await world.submit()
    await a.told(job.id)
    node = await world.jobs.CordonNode(pb.CordonNodeRequest(node="a"))
    assert node.state == pb.NODE_STATE_CORDONED
    waiting = await world.submit("next", low=1)
    await world.form(job.id, 1, 1)
    await world.close_job(job.id, 1, "Succeeded")
    await a.told(job.id, stop="Finished")
    a.stopped(job.id, 1)

    async def drained() -> bool:
        return (await world.jobs.ListNodes(pb.ListNodesRequest())).nodes[0].state == pb.NODE_STATE_DRAINED

    await world.until(drained)
    assert (await world.get(waiting.id)).reason == "NoNodes"
    await world.jobs.UncordonNode(pb.UncordonNodeRequest(node="a"))
    await a.told(waiting.id)


async def test_another_replica_takes_over_where_the_first_one_stopped(world: Any, world_of: Any):
    other = world_of()
    other.database, other.objects = world.database, world.objects
    await other.start()
    try:
        first, second = await world.submit("one", low=1), await other.submit("two", low=2)
        a = await world.agent("a", 2)
        await a.told(first.id)
        await world.stop()
        # The other replica has the cycle and the reactor as soon as the leases are free; agents dial it.
        a = await other.agent("a", 2, agent=a.agent_id)
        assert (await a.told(first.id)).attempt == 1
        await world.form(first.id, 1, 1)
        await world.close_job(first.id, 1, "Succeeded")
        await a.told(first.id, stop="Finished")
        a.stopped(first.id, 1)
        await a.told(second.id)
    finally:
        await other.stop()


async def test_an_agent_s_clock_that_is_off_is_told_until_it_is_right_or_the_agent_is_gone(short_lived: Any):
    def why() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{short_lived.service.metrics_port}/healthz") as answer:
            return str(json.load(answer)["parts"].get("clocks of agents", {}).get("why", ""))

    async def says(text: str) -> bool:
        found = await asyncio.to_thread(why)
        return text in found if text else not found

    a, b = await short_lived.agent("a", 1), await short_lived.agent("b", 1)
    b.ahead_s = -900
    await short_lived.until(lambda: says("the clock of node b is 15 min"))
    b.ahead_s = 0
    await short_lived.until(lambda: says(""))
    a.ahead_s = 900
    # Its last seconds may be 14 min 59 by the time it is heard.
    await short_lived.until(lambda: says("the clock of node a is 1"))
    await a.close()
    await short_lived.until(lambda: says(""))
    assert await short_lived.jobs.ListNodes(pb.ListNodesRequest())
