"""The real service with agents over gRPC."""

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


async def test_two_nodes_form_a_generation_and_its_fence_is_up(stack, one):
    a, b = await pair(stack, one)
    formed = await form(a, b)
    assert (formed.number, formed.world_size, dict(formed.mesh)) == (1, 2, {"dp_replicate": 2})
    assert [(m.worker, m.rank) for m in formed.members] == [("j.1.a.0", 0), ("j.1.b.0", 1)]
    assert await one.fence() == 1
    async with connect(one.service.endpoint, TOKEN) as channel:
        stub = RendezvousServiceStub(channel)
        assert await stub.GetGeneration(pb.GetGenerationRequest(job="j")) == formed
        with pytest.raises(RemoteError) as none:
            await stub.GetGeneration(pb.GetGenerationRequest(job="nothing"))
    assert none.value.reason == "NoGeneration"


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


async def test_reports_are_acknowledged_after_the_commit_and_counted_once(stack, one):
    a, b = await pair(stack, one)
    await form(a, b)
    killed = pb.WorkerExited(signal=9, category=SIGNAL)
    for _ in range(3):
        await b.report(1, report_id="r-1", exited=killed)
        assert (await b.expect("ack")).report_ids == ["r-1"]
    # The same again from a spool, under another id and on another stream.
    await b.join()
    await b.report(1, report_id="r-2", exited=killed)
    assert (await b.expect("ack")).report_ids == ["r-2"]
    names = await one.event_names()
    assert (names.count("Exited"), names.count("GenerationBroken"), names.count("GenerationOpened")) == (1, 1, 2)


async def test_a_report_that_can_never_be_recorded_is_acknowledged_as_refused(stack, one):
    a, b = await pair(stack, one)
    await form(a, b)
    await b.exits(7, signal=9)
    ack = await b.expect("ack")
    assert [(r.report_id, r.reason) for r in ack.refused] == [(ack.report_ids[0], "UnknownGeneration")]
    await b.report(1, exited=pb.WorkerExited(worker="j.1.a.0"))
    assert (await b.expect("ack")).refused[0].reason == "Malformed"
    await b.report(1)
    assert (await b.expect("ack")).refused[0].reason == "Malformed"


async def test_the_job_ends_when_all_workers_exited_0(stack, one):
    a, b = await pair(stack, one)
    await form(a, b)
    await a.exits(1)
    await b.exits(1)
    assert (await a.expect("closed")).outcome == "Succeeded"
    late = await stack.enter_async_context(Agent(one.service.endpoint, "b", "late"))
    await late.join()
    assert (await late.expect("closed")).outcome == "Succeeded"


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


async def test_a_restarted_agent_takes_over_and_training_goes_on(stack, one):
    a, b = await pair(stack, one)
    formed = await form(a, b)
    restarted = await stack.enter_async_context(Agent(one.service.endpoint, "b", "agent-b2"))
    accepted = await restarted.join(running_generation=1)
    assert accepted.generation == 1
    assert await restarted.expect("formed") == formed
    with pytest.raises(RemoteError) as fenced:
        await b.ended()
    assert fenced.value.reason == "AgentReplaced"
    # The one that was replaced does not get back in.
    with pytest.raises(RemoteError) as refused:
        await b.join()
    assert refused.value.reason == "AgentReplaced"
    assert "GenerationBroken" not in await one.event_names()


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


async def test_a_resize_drains_the_generation(stack, one):
    a, b = await pair(stack, one)
    await form(a, b)
    c = await stack.enter_async_context(Agent(one.service.endpoint, "c"))
    three = ("a", "b", "c")
    await c.join(three)
    for agent in (a, b):
        assert (await agent.expect("drain")).generation == 1
        await agent.send(join=agent.joining(three))
    assert await one.fence() == 1
    await c.ready()
    for agent in (a, b):
        await agent.ready(after=1)
    grown = await c.expect("formed")
    assert (grown.number, grown.world_size) == (2, 3)
    assert [m.node for m in grown.members] == ["a", "b", "c"]


async def test_leaving_all_nodes_closes_as_stopped_and_a_new_attempt_counts_on(stack, one):
    a, b = await pair(stack, one)
    await form(a, b)
    for agent in (a, b):
        await agent.exits(1, signal=15, expected=True)
        await agent.send(leave=pb.LeaveNode(reason="Cancelled"))
    assert (await b.expect("closed")).outcome == "Stopped"
    for agent in (a, b):
        await agent.ended()
    again = await stack.enter_async_context(Agent(one.service.endpoint, "a", "agent-a2", attempt=2))
    await again.join()
    assert (await again.expect("opened")).number == 2
    with pytest.raises(RemoteError) as stale:
        await a.join()
    assert stale.value.reason == "StaleAttempt"


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({"heartbeat": pb.MemberHeartbeat()}, "first message"),
        ({"join": pb.JoinNode()}, "join.job"),
        ({"join": pb.JoinNode(job="../x", node="B", attempt=-1, failures_left=-1)}, "join.failures_left"),
        ({}, "first message"),
    ],
)
async def test_garbage_is_answered_with_what_is_wrong(stack, one, first, words):
    agent = await stack.enter_async_context(Agent(one.service.endpoint, "a"))
    await agent.dial(**first)
    with pytest.raises(RemoteError) as wrong:
        await agent.ended()
    assert wrong.value.code().name == "INVALID_ARGUMENT"
    assert words in wrong.value.message
    assert await one.event_names() == []


async def test_a_stream_that_never_says_who_joins_is_ended(stack, one, monkeypatch):
    monkeypatch.setattr(server, "FIRST_MESSAGE_S", 0.2)
    async with connect(one.service.endpoint, TOKEN) as channel:
        call = RendezvousServiceStub(channel).Join()
        with pytest.raises(RemoteError) as silent:
            await asyncio.wait_for(call.read(), 20)
    assert silent.value.reason == "Silent"


async def test_garbage_in_the_middle_ends_its_own_stream_only(stack, one):
    a, b = await pair(stack, one)
    formed = await form(a, b)
    await a.dial(join=a.joining())
    await a.expect("formed")
    await a.send()
    with pytest.raises(RemoteError) as wrong:
        await a.ended()
    assert wrong.value.code().name == "INVALID_ARGUMENT"
    await a.join(running_generation=1)
    assert await a.expect("formed") == formed
    await a.ready(after=99)
    with pytest.raises(RemoteError) as ahead:
        await a.ended()
    assert ahead.value.reason == "UnknownGeneration"
    await b.report(1, report_id="", exited=pb.WorkerExited())
    assert (await b.expect("ack")).report_ids


async def test_noise_instead_of_messages_does_not_reach_the_log(stack, one):
    async with connect(one.service.endpoint, TOKEN) as channel:
        call = channel.stream_stream("/distroml.api.rendezvous.v1.RendezvousService/Join")()
        await call.write(b"\xff\xfe noise \x00" * 50)
        with pytest.raises(RemoteError):
            await asyncio.wait_for(call.read(), 20)
    a, b = await pair(stack, one)
    assert (await form(a, b)).number == 1
