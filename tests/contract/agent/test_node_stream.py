"""The agent's side of NodeService: it says who it is, applies what it is told, and repeats what nobody acknowledged."""

from __future__ import annotations

from distroml.api.scheduler.v1 import nodes_pb2 as pb
from distroml.scheduler.session import refused_hello
from services.agent.tests.plane import Plane, until
from tests.contract.agent.conftest import Agent

STOP = pb.DesiredAttempt(job="job-1", attempt=3, stop=pb.StopOrder(reason="Cancelled", grace_s=1))


async def applied(plane: Plane) -> None:
    """The newest desired state is wholly so."""
    await until(lambda: plane.scheduler.desired.revision in plane.scheduler.applied, what="the newest state is applied")


async def test_an_agent_keeps_to_the_contract_over_lost_streams_and_restarts(agent: Agent, plane: Plane) -> None:
    scheduler = plane.scheduler
    [hello] = await until(lambda: scheduler.hellos, what="a hello")
    assert refused_hello(hello) == [], "the scheduler takes it"
    assert [(slot.id, slot.kind) for slot in hello.slots] == [("cpu-0", "cpu"), ("cpu-1", "cpu")]
    assert hello.address == "127.0.0.1"
    assert not hello.attempts
    await applied(plane)

    # It is to end what it never heard of: it says that nothing runs, also where nobody acknowledges it.
    scheduler.acknowledge = False
    scheduler.want(STOP)
    [said] = await until(lambda: scheduler.observations, what="an observation")
    assert (said.job, said.attempt, said.phase) == ("job-1", 3, pb.ATTEMPT_PHASE_STOPPED)
    assert said.observation_id

    # The stream is lost: the same agent says the same again under the same id.
    await plane.stop()
    await plane.start()
    await until(lambda: len(scheduler.hellos) > 1 and len(scheduler.observations) > 1, what="the same again")
    again = scheduler.hellos[-1]
    assert (again.node, again.boot_id, again.agent_id) == (hello.node, hello.boot_id, hello.agent_id)
    assert list(again.slots) == list(hello.slots)
    assert [(one.job, one.attempt, one.phase) for one in again.attempts] == [(said.job, said.attempt, said.phase)]
    assert {one.observation_id for one in scheduler.observations} == {said.observation_id}

    # So does the next agent of the node, from the disk; once it is acknowledged it is forgotten.
    await agent.stop()
    scheduler.acknowledge = True
    before = len(scheduler.hellos), len(scheduler.observations)
    await agent.start()
    await until(
        lambda: len(scheduler.hellos) > before[0] and len(scheduler.observations) > before[1],
        what="what was not acknowledged",
    )
    again = scheduler.hellos[-1]
    assert (again.node, again.boot_id) == (hello.node, hello.boot_id)
    assert again.agent_id != hello.agent_id
    assert said.observation_id in {one.observation_id for one in scheduler.observations[before[1] :]}
    scheduler.want()
    await applied(plane)

    await agent.stop()
    heard = len(scheduler.observations)
    await agent.start()
    scheduler.want()
    await applied(plane)
    assert len(scheduler.observations) == heard, "what was acknowledged is not said again"
