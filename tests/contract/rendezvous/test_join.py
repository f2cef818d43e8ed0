"""What an agent hears on its stream, what becomes of what it says, and what it is when the stream was lost."""

from __future__ import annotations

from typing import Any

import pytest

from distroml.api.common.v1 import common_pb2
from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.api.rendezvous.v1.rendezvous_pb2_grpc import RendezvousServiceStub
from services.rendezvous.tests.rendezvous_agents import Agent, form
from tests.contract.calls import PATIENCE_S, fields_of, refused
from tests.contract.rendezvous.conftest import Dial
from tests.contract.targets import Running

SIGNAL = common_pb2.FAILURE_CATEGORY_SIGNAL
KILLED = pb.WorkerExited(signal=9, category=SIGNAL)

Pair = tuple[Agent, Agent]


async def names(service: Running, job: str) -> list[str]:
    """The events that rendezvous wrote about a job."""
    return [one.type.rpartition(".")[2] for one in await service.written(f"rendezvous/job/{job}")]


async def test_all_members_hear_the_same_generation_and_so_does_who_asks(
    service: Running, pair: Pair, job: str
) -> None:
    async with service.channel() as channel:
        stub = RendezvousServiceStub(channel)
        with refused("NOT_FOUND", "NoGeneration") as none:
            await stub.GetGeneration(pb.GetGenerationRequest(job=job))
        assert none.value.metadata["job"] == job
        for number in (1, 2):
            formed = await form(*pair, after=number - 1)
            assert (formed.job, formed.number, formed.attempt, formed.world_size) == (job, number, 1, 2)
            assert dict(formed.mesh) == {"dp_replicate": 2}
            assert [(m.worker, m.node, m.rank, m.local_rank, m.node_rank) for m in formed.members] == [
                (f"{job}.1.a.0", "a", 0, 0, 0),
                (f"{job}.1.b.0", "b", 1, 0, 1),
            ]
            assert await stub.GetGeneration(pb.GetGenerationRequest(job=job)) == formed
            fence = await service.state.get(f"fences/{job}")
            assert fence is not None
            assert fence.value == str(number).encode()
            if number == 1:
                await pair[1].exits(1, signal=9, category=SIGNAL)
                for member in pair:
                    broken = await member.expect("broken")
                    assert (broken.number, broken.rank, broken.category) == (1, 1, SIGNAL)
                    assert (await member.expect("opened")).number == 2


async def test_a_report_is_acknowledged_whenever_it_comes_and_counted_once(
    service: Running, pair: Pair, job: str
) -> None:
    _, b = pair
    await form(*pair)
    for _ in range(2):
        await b.report(1, report_id="r-1", exited=KILLED)
        assert (await b.expect("ack")).report_ids == ["r-1"]
    # The same again from a spool: on another stream, and under another id.
    await b.join()
    for again in ("r-1", "r-2"):
        await b.report(1, report_id=again, exited=KILLED)
        assert (await b.expect("ack")).report_ids == [again]
    counted = await names(service, job)
    assert [counted.count(name) for name in ("Exited", "GenerationBroken", "GenerationOpened")] == [1, 1, 2]


async def test_a_report_that_can_never_be_recorded_is_acknowledged_as_refused(pair: Pair, job: str) -> None:
    _, b = pair
    await form(*pair)
    for generation, what, reason in (
        (7, {"exited": KILLED}, "UnknownGeneration"),
        (1, {"exited": pb.WorkerExited(worker=f"{job}.1.a.0")}, "Malformed"),
        (1, {}, "Malformed"),
    ):
        await b.report(generation, **what)
        ack = await b.expect("ack")
        [one] = ack.refused
        assert (one.report_id, one.reason) == (ack.report_ids[0], reason)
        assert one.message


async def test_an_agent_that_lost_its_stream_is_told_where_its_job_stands(
    service: Running, pair: Pair, agent: Dial, job: str
) -> None:
    a, b = pair
    formed = await form(a, b)
    await b.hang_up()
    accepted = await b.join(running_generation=1)
    assert accepted.generation == 1
    assert await b.expect("formed") == formed
    # A restarted agent takes the node over; the one before it is told, and does not get back in.
    restarted = await agent("b", "agent-b2")
    await restarted.join(running_generation=1)
    assert await restarted.expect("formed") == formed
    with refused("FAILED_PRECONDITION", "AgentReplaced"):
        await b.ended()
    with refused("FAILED_PRECONDITION", "AgentReplaced"):
        await b.join()
    assert "GenerationBroken" not in await names(service, job)

    await a.hang_up()
    await restarted.report(1, exited=KILLED)
    assert (await restarted.expect("opened")).number == 2
    assert (await a.join(running_generation=1)).generation == 2
    assert (await a.expect("opened")).number == 2


async def test_the_end_is_told_to_whoever_joins_later(pair: Pair, agent: Dial) -> None:
    await form(*pair)
    for member in pair:
        await member.exits(1)
    for member in pair:
        assert (await member.expect("closed")).outcome == "Succeeded"
    late = await agent("b", "agent-late")
    await late.join()
    assert (await late.expect("closed")).outcome == "Succeeded"


async def test_leaving_ends_the_stream_well_and_a_newer_attempt_fences_the_older_one(pair: Pair, agent: Dial) -> None:
    await form(*pair)
    # One after the other: who has left is not told how the rest ends.
    for member in pair:
        await member.exits(1, signal=15, expected=True)
        await member.send(leave=pb.LeaveNode(reason="Cancelled"))
        if member is pair[1]:
            assert (await member.expect("closed")).outcome == "Stopped"
        await member.ended()
    again = await agent("a", "agent-a2", attempt=2)
    await again.join()
    assert (await again.expect("opened")).number == 2
    with refused("FAILED_PRECONDITION", "StaleAttempt"):
        await pair[0].join()


async def test_a_resize_drains_the_generation(pair: Pair, agent: Dial) -> None:
    await form(*pair)
    c, three = await agent("c"), ("a", "b", "c")
    await c.join(three)
    for member in pair:
        assert (await member.expect("drain")).generation == 1
        await member.send(join=member.joining(three))
    await c.ready()
    for member in pair:
        await member.ready(after=1)
    grown = await c.expect("formed")
    assert (grown.number, [member.node for member in grown.members]) == (2, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("first", "fields"),
    [
        ({"heartbeat": pb.MemberHeartbeat()}, {"join"}),
        ({}, {"join"}),
        ({"join": pb.JoinNode()}, {"join.job", "join.node", "join.agent_id", "join.workers"}),
        ({"join": pb.JoinNode(job="../x", node="B", attempt=-1, failures_left=-1)}, {"join.job", "join.failures_left"}),
    ],
)
async def test_a_wrong_first_message_is_answered_with_what_is_wrong(
    service: Running, agent: Dial, job: str, first: dict[str, Any], fields: set[str]
) -> None:
    dialled = await agent("a")
    await dialled.dial(**first)
    with refused("INVALID_ARGUMENT", "InvalidArgument") as caught:
        await dialled.ended()
    assert fields <= fields_of(caught)
    assert await names(service, job) == []


async def test_nonsense_ends_its_own_stream_only(pair: Pair, agent: Dial) -> None:
    a, b = pair
    formed = await form(a, b)
    await a.send()
    with refused("INVALID_ARGUMENT", "InvalidArgument") as nothing:
        await a.ended()
    assert fields_of(nothing) == {"kind"}
    await a.join(running_generation=1)
    assert await a.expect("formed") == formed
    await a.ready(after=99)
    with refused("FAILED_PRECONDITION", "UnknownGeneration"):
        await a.ended()
    await a.join(running_generation=1)
    stranger = await agent("c", "agent-a")
    await a.send(join=stranger.joining())
    with refused("INVALID_ARGUMENT", "InvalidArgument") as other:
        await a.ended()
    assert fields_of(other) == {"join"}
    await b.report(1, exited=KILLED)
    assert (await b.expect("ack")).report_ids


async def test_noise_and_a_callers_deadline_end_a_stream(service: Running, agent: Dial) -> None:
    async with service.channel() as channel:
        noise = channel.stream_stream("/distroml.api.rendezvous.v1.RendezvousService/Join")(timeout=PATIENCE_S)
        await noise.write(b"\xff\xfe noise \x00" * 50)
        with refused("INVALID_ARGUMENT", "Garbled"):
            await noise.read()
        silent = RendezvousServiceStub(channel).Join(timeout=1)
        with refused("DEADLINE_EXCEEDED", "DeadlineExceeded"):
            await silent.read()
