"""The real service with agents over gRPC: what the contract (`tests/contract/rendezvous`) leaves out."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from rendezvous_agents import TOKEN, Agent, form, plane

from distroml.api.common.v1 import common_pb2, replay_pb2
from distroml.api.common.v1.replay_pb2_grpc import ReplayServiceStub
from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.api.rendezvous.v1.rendezvous_pb2_grpc import RendezvousServiceStub
from distroml.rendezvous import server
from distroml.rpc import RemoteError, connect

SIGNAL = common_pb2.FAILURE_CATEGORY_SIGNAL


@pytest.fixture
async def stack():
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def one(stack, tmp_path):
    return await stack.enter_async_context(plane(tmp_path))


async def pair(stack, one, **more):
    agents = [await stack.enter_async_context(Agent(one.service.endpoint, node)) for node in "ab"]
    for agent in agents:
        await agent.join(**more)
    return agents


async def verify(plane_):
    """What the replay service finds different between the log and the stored state, and how many events it read."""
    async with connect(plane_.service.endpoint, TOKEN) as channel:
        answers = [answer async for answer in ReplayServiceStub(channel).Verify(replay_pb2.VerifyRequest(job="j"))]
    return [d for answer in answers for d in answer.differences], sum(answer.events for answer in answers)


async def test_a_killed_worker_is_replaced_in_the_next_generation(stack, one):
    a, b = await pair(stack, one)
    await form(a, b)
    await b.exits(1, signal=9, category=SIGNAL)
    for agent in (a, b):
        broken = await agent.expect("broken")
        assert (broken.number, broken.rank, broken.category) == (1, 1, SIGNAL)
        assert (await agent.expect("opened")).number == 2
    assert await one.fence() == 2
    again = await form(a, b, after=1)
    assert (again.number, [m.rank for m in again.members]) == (2, [0, 1])
    differences, events = await verify(one)
    assert (differences, events) == ([], len(await one.event_names()))


async def test_one_failure_too_many_fails_the_attempt_with_the_exceptions_text(stack, one):
    a, b = await pair(stack, one, failures_left=0)
    await form(a, b)
    await b.exits(1, code=1, category=common_pb2.FAILURE_CATEGORY_EXCEPTION, message="KeyError: 'loss'")
    closed = await a.expect("closed")
    assert (closed.outcome, closed.reason) == ("Failed", "RetryBudgetExhausted")
    assert "KeyError: 'loss'" in closed.message


async def test_a_silent_node_is_lost_after_its_lease(stack, tmp_path):
    one = await stack.enter_async_context(plane(tmp_path, member_ttl_s=2))
    a, b = await pair(stack, one, min_workers=1)
    formed = await form(a, b)
    beating = asyncio.create_task(beat(a))
    stack.callback(beating.cancel)
    # b's stream stays open, and says nothing.
    broken = await a.expect("broken")
    assert (broken.number, broken.cause, broken.category) == (
        formed.number,
        "lease expired",
        common_pb2.FAILURE_CATEGORY_NODE_LOST,
    )
    assert (await a.expect("opened")).failures_left == 3
    with pytest.raises(RemoteError) as gone:
        await b.ended()
    assert gone.value.reason == "NotJoined"


async def beat(agent: Agent) -> None:
    while True:
        await agent.send(heartbeat=pb.MemberHeartbeat())
        await asyncio.sleep(0.1)


async def test_a_restarted_service_goes_on_in_the_middle_of_a_generation(stack, tmp_path):
    agents = AsyncExitStack()
    await stack.enter_async_context(agents)
    async with plane(tmp_path) as before:
        endpoint = before.service.endpoint
        a, b = [await agents.enter_async_context(Agent(endpoint, node)) for node in "ab"]
        for agent in (a, b):
            await agent.join()
        formed = await form(a, b)
        await b.exits(1, signal=9, category=SIGNAL)
        assert (await a.expect("opened")).number == 2
        # a is ready for generation 2, b is not yet.
        await a.ready(after=1)
        await until(lambda: before.event_names(), lambda names: names[-1] == "NodeReady")
    with pytest.raises(RemoteError):
        await a.ended()
    async with plane(tmp_path, listen=endpoint):
        for agent in (b, a):
            assert (await agent.join(running_generation=1)).generation == 2
            assert (await agent.expect("opened")).number == 2
        await b.ready(after=1)
        again = await a.expect("formed")
        assert (again.number, again.members) == (2, formed.members)
        await a.hang_up()
        await b.hang_up()


async def until(read, holds):
    async with asyncio.timeout(20):
        while not holds(await read()):
            await asyncio.sleep(0.01)


async def test_replicas_tell_their_own_agents_what_the_others_decided(stack, tmp_path):
    one = await stack.enter_async_context(plane(tmp_path))
    two = await stack.enter_async_context(plane(tmp_path))
    a = await stack.enter_async_context(Agent(one.service.endpoint, "a"))
    b = await stack.enter_async_context(Agent(two.service.endpoint, "b"))
    await a.join()
    await b.join()
    for generation in range(1, 4):
        formed = await form(a, b, after=generation - 1)
        assert formed.number == generation
        await (a, b)[generation % 2].exits(generation, signal=9, category=SIGNAL)
        for agent in (a, b):
            assert (await agent.expect("opened")).number == generation + 1


async def test_a_stream_that_never_says_who_joins_is_ended(stack, one, monkeypatch):
    monkeypatch.setattr(server, "FIRST_MESSAGE_S", 0.2)
    async with connect(one.service.endpoint, TOKEN) as channel:
        call = RendezvousServiceStub(channel).Join()
        with pytest.raises(RemoteError) as silent:
            await asyncio.wait_for(call.read(), 20)
    assert silent.value.reason == "Silent"


async def test_the_stream_of_a_job_that_ended_retires_with_its_fence_and_what_comes_late_is_heard(stack, tmp_path):
    one = await stack.enter_async_context(plane(tmp_path, retire_after_s=1))
    a, b = await pair(stack, one)
    formed = await form(a, b)
    for agent in (a, b):
        await agent.exits(1)
    assert (await a.expect("closed")).outcome == "Succeeded"

    async def live():
        return await one.events.streams("rendezvous/job/")

    # That an attempt is over is not yet the end of the job.
    await one.scheduler_says("Submitted")
    await asyncio.sleep(1.5)
    assert await live() == ["rendezvous/job/j"]
    await one.events.retire("scheduler/job/j", version=1)
    await until(live, lambda found: not found)
    left, _ = await one.events.parts("")
    assert [key for key in left if not key.startswith("leases/")] == []

    async with connect(one.service.endpoint, TOKEN) as channel:
        asked = pb.GetGenerationRequest(job="j")
        assert await RendezvousServiceStub(channel).GetGeneration(asked) == formed
    differences, events = await verify(one)
    assert (differences, events) == ([], len(await one.event_names()))
    late = await stack.enter_async_context(Agent(one.service.endpoint, "a", "agent-late"))
    await late.join()
    assert (await late.expect("closed")).outcome == "Succeeded"
    assert (await one.event_names())[-1] == "NodeJoined"
    await until(live, lambda found: not found)
