from __future__ import annotations

from typing import Any

import pytest

from distroml.api.common.v1 import common_pb2
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.events import Context, NewEvent, Position, Recorded, UnknownEvent, fresh_id
from distroml.eventstore import Append, Commit
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.spec import FailureCategory
from distroml.scheduler.reactor import DURABLE, command_of

CONTEXT = Context(deployment="d", project="p", actor="a", causation_id="c", correlation_id="c", time_ms=1)


def recorded(type_: str, message: Any, *, data: bytes | None = None, public: bool = True) -> Recorded:
    return Recorded(
        id="evt-1",
        type=type_,
        schema=1,
        public=public,
        data=message.SerializeToString() if data is None else data,
        stream="rendezvous/job/j",
        version=1,
        position=Position("log", 1),
        context=CONTEXT,
    )


def test_what_each_event_means():
    formed = rdzv.GenerationFormed(generation=rdzv.Generation(number=3, attempt=2))
    start = command_of(recorded("rendezvous.generation.GenerationFormed", formed))
    assert isinstance(start, c.Start)
    assert (start.attempt, start.generation) == (2, 3)
    broken = rdzv.GenerationBroken(number=3, cause="worker exited", category=common_pb2.FAILURE_CATEGORY_HANG)
    failure = command_of(recorded("rendezvous.generation.GenerationBroken", broken))
    assert isinstance(failure, c.CountFailure)
    assert (failure.generation, failure.category, failure.message) == (3, FailureCategory.HANG, "worker exited")
    closed = rdzv.Closed(outcome="Failed", attempt=2, reason="R", category=common_pb2.FAILURE_CATEGORY_SIGNAL)
    finish = command_of(recorded("rendezvous.generation.Closed", closed))
    assert isinstance(finish, c.Finish)
    assert (finish.outcome, finish.attempt, finish.category) == ("Failed", 2, FailureCategory.SIGNAL)


@pytest.mark.parametrize("category", ["UNSPECIFIED", "NODE_LOST", "PREEMPTED"])
def test_what_is_nobodys_failure_is_not_counted(category: str):
    value = common_pb2.FailureCategory.Value(f"FAILURE_CATEGORY_{category}")
    broken = rdzv.GenerationBroken(number=3, category=value)
    assert command_of(recorded("rendezvous.generation.GenerationBroken", broken)) is None


def test_what_means_nothing_here():
    assert command_of(recorded("rendezvous.step.StepRecorded", rdzv.StepRecorded(step=1))) is None
    assert command_of(recorded("rendezvous.member.NodeJoined", None, data=b"{}", public=False)) is None
    with pytest.raises(UnknownEvent):
        command_of(recorded("rendezvous.generation.Invented", None, data=b""))
    with pytest.raises(ValueError, match="outcome 'Perhaps'"):
        command_of(recorded("rendezvous.generation.Closed", rdzv.Closed(outcome="Perhaps")))


async def append(world: Any, job: str, type_: str, data: bytes) -> None:
    stream = f"rendezvous/job/{job}"
    event = NewEvent(id=fresh_id("evt"), type=type_, schema=1, public=True, data=data)
    appended = Append(stream, await world.events.version(stream), (event,))
    await world.events.commit(Commit(context=CONTEXT, appends=(appended,)))


async def test_unknown_events_and_unknown_jobs_hold_nothing_up(world: Any):
    a = await world.agent("a", 2)
    job = await world.submit()
    await a.told(job.id)
    await append(world, job.id, "rendezvous.generation.Invented", b"")
    await world.form("job-of-another-log", 1, 1)
    await world.form(job.id, 1, 1)
    await world.state_of(job.id, "RUNNING")


async def test_a_damaged_event_holds_its_own_job_only_and_shows_in_health(world: Any):
    a = await world.agent("a", 2)
    one, two = await world.submit("one", low=1), await world.submit("two", low=1)
    await a.told(one.id)
    await a.told(two.id)
    await append(world, one.id, "rendezvous.generation.GenerationFormed", b"\xff\xff\xff")
    await world.form(one.id, 1, 1)
    await world.form(two.id, 1, 1)
    await world.state_of(two.id, "RUNNING")
    assert (await world.get(one.id)).state == pb.JOB_STATE_ADMITTED
    healthy, detail = world.service._healthz()
    assert healthy
    assert one.id not in str(detail["parts"]["cycle"])
    assert "GenerationFormed" in detail["parts"]["reactor stream"]["why"]


async def test_events_that_come_again_change_nothing(world: Any):
    a = await world.agent("a", 2)
    job = await world.submit()
    await a.told(job.id)
    await world.form(job.id, 1, 1)
    await world.break_generation(job.id, 1)
    await world.form(job.id, 1, 2)

    async def caught_up() -> bool:
        return (await world.get(job.id)).generation == 2

    await world.until(caught_up)
    before = await world.types(f"scheduler/job/{job.id}")
    await world.stop()
    # As if the cursor had never been moved: everything is delivered once more.
    again = world.events.subscribe(f"{DURABLE}.again", streams=("rendezvous/job/",))
    seen = 0
    await world.start()
    async for one in again:
        seen += 1
        await append(world, job.id, one.type, one.data)
        if seen == 3:
            break
    await again.close()
    marker = await world.submit("marker", low=1)
    a = await world.agent("a", 3, boot="boot-2")
    await a.told(marker.id)
    await world.form(marker.id, 1, 1)
    await world.state_of(marker.id, "RUNNING")
    assert await world.types(f"scheduler/job/{job.id}") == before
