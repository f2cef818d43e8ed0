"""What agents are told, and what becomes of what they say: NodeService, and users' calls about nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1 import nodes_pb2 as npb
from distroml.api.scheduler.v1.nodes_pb2_grpc import NodeServiceStub
from distroml.events import fresh_id
from distroml.rpc import RemoteError
from services.scheduler.tests.agents import Agent
from tests.contract.calls import drained, fields_of, refused, until
from tests.contract.scheduler.conftest import Scheduler

HELLO = npb.NodeHello(node="a", boot_id="b", agent_id="g", slots=[pb.Slot(id="0")])


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ([], {"hello"}),
        ([npb.ConnectRequest(heartbeat=npb.NodeHeartbeat())], {"hello"}),
        (
            [npb.ConnectRequest(hello=npb.NodeHello(node="../x", boot_id="b", agent_id="g"))],
            {"hello.node", "hello.slots"},
        ),
        (
            [npb.ConnectRequest(hello=npb.NodeHello(node="a", slots=[pb.Slot(id="0"), pb.Slot(id="0")]))],
            {"hello.slots", "hello.boot_id", "hello.agent_id"},
        ),
    ],
)
async def test_agents_that_talk_nonsense_are_told_so(
    scheduler: Scheduler, messages: list[npb.ConnectRequest], fields: set[str]
) -> None:
    async def talk() -> AsyncIterator[npb.ConnectRequest]:
        for message in messages:
            yield message

    with refused("INVALID_ARGUMENT", "InvalidArgument") as caught:
        await drained(NodeServiceStub(scheduler.channel).Connect(talk()))
    assert fields_of(caught) == fields


async def ended(agent: Agent) -> RemoteError:
    """With what the agent's stream ends."""

    async def check() -> BaseException | None:
        return agent.error

    error = await until(check, f"the stream of {agent.node} ends")
    assert isinstance(error, RemoteError), error
    return error


async def test_a_second_hello_ends_the_stream(scheduler: Scheduler) -> None:
    agent = await scheduler.agent(fresh_id("node"))
    agent._say(hello=HELLO)

    assert [field for field, _ in (await ended(agent)).violations] == ["kind"]


async def test_a_node_is_welcomed_given_work_and_believed_once(scheduler: Scheduler) -> None:
    name = fresh_id("node")
    agent = await scheduler.agent(name)
    assert agent.welcome is not None
    assert agent.welcome.deployment == scheduler.service.deployment
    assert agent.welcome.lease_ttl_s > 0
    assert not agent.desired.attempts

    job = await scheduler.submit(workers=2, priority=1000, retry=pb.RetryPolicy(max_failures=0))
    told = await agent.told(job.id)
    assert (list(told.slots), told.attempt, told.failures_left) == (["cpu-0", "cpu-1"], 1, 0)
    assert [(member.node, member.workers) for member in told.gang] == [(name, 2)]
    assert told.spec == job.spec

    # The same observation again, as an agent's spool sends it, and under another id, as a hello does: acknowledged
    # each time, counted once.
    spooled = fresh_id("obs")
    for observation in (spooled, spooled, fresh_id("obs")):
        agent.acks.clear()
        agent.observe(job.id, 1, npb.ATTEMPT_PHASE_FAILED, observation_id=observation, message="no interpreter")
        await agent.acked(observation)
    # An agent that dials again is told where it stands.
    again = await scheduler.agent(name)
    assert again.find(job.id) is not None
    assert (await ended(agent)).reason == "AgentReplaced"

    await again.told(job.id, stop="Failed")
    again.stopped(job.id, 1)
    await again.rid_of(job.id)
    types = [one.type.rpartition(".")[2] for one in await scheduler.service.written(f"scheduler/job/{job.id}")]
    assert types.count("Failed") == 1
    failed = await scheduler.get(job.id)
    assert failed.state == pb.JOB_STATE_FAILED
    assert "no interpreter" in failed.message


async def test_another_machine_under_the_same_name_is_refused(scheduler: Scheduler) -> None:
    name = fresh_id("node")
    await scheduler.agent(name)
    with pytest.raises(AssertionError, match="NodeNameTaken"):
        await scheduler.agent(name, boot="another-boot")


async def test_a_node_is_closed_and_opened_again(scheduler: Scheduler) -> None:
    name = fresh_id("node")
    await scheduler.agent(name)

    async def state() -> str:
        nodes = (await scheduler.jobs.ListNodes(pb.ListNodesRequest())).nodes
        return next((pb.NodeState.Name(node.state) for node in nodes if node.id == name), "")

    async def ready() -> bool:
        return await state() == "NODE_STATE_READY"

    await until(ready, "the node is listed")
    request = pb.CordonNodeRequest(node=name, request_id=fresh_id("req"))
    first = await scheduler.jobs.CordonNode(request)
    assert first.id == name
    assert first.state in (pb.NODE_STATE_CORDONED, pb.NODE_STATE_DRAINED)
    assert [(slot.id, slot.kind) for slot in first.slots] == [("cpu-0", "cpu"), ("cpu-1", "cpu")]
    opened = await scheduler.jobs.UncordonNode(pb.UncordonNodeRequest(node=name))
    assert opened.state == pb.NODE_STATE_READY
    assert await scheduler.jobs.CordonNode(request) == first, "the first answer again"
    await until(ready, "a repeated request changed nothing")
    with refused("ALREADY_EXISTS", "RequestIdReused"):
        await scheduler.jobs.UncordonNode(pb.UncordonNodeRequest(node=name, request_id=request.request_id))
    for call, asked in (
        (scheduler.jobs.CordonNode, pb.CordonNodeRequest(node="nobody")),
        (scheduler.jobs.UncordonNode, pb.UncordonNodeRequest(node="nobody")),
    ):
        with refused("NOT_FOUND", "NoSuchNode"):
            await call(asked)
