"""What comes in malformed, what is away, and who lost their lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.api.telemetry.v1.telemetry_pb2_grpc import (
    TelemetryServiceServicer,
    add_TelemetryServiceServicer_to_server,
)
from distroml.eventstore import Fenced, Guard
from distroml.rpc import RemoteError, Service, ServiceSettings, connect
from distroml.scheduler.domain.spec import CheckpointPolicy, JobSpec, RetryPolicy, WorkerRange, completed
from distroml.scheduler.domain.validation import violations
from distroml.scheduler.leadership import Leadership
from distroml.scheduler.streams import Streams

# ---- logs


class Telemetry(TelemetryServiceServicer):
    async def QueryLogs(self, request: Any, context: Any) -> AsyncIterator[telemetry_pb2.QueryLogsResponse]:
        lines = [
            telemetry_pb2.LogRecord(job=request.job, rank=rank, stream="stdout", text=f"line of {rank}", at_ms=5)
            for rank in request.ranks
        ]
        yield telemetry_pb2.QueryLogsResponse(records=lines)


async def test_lines_come_from_telemetry_and_it_may_be_away(world_of: Any, tmp_path: Any):
    settings = ServiceSettings(service="telemetry", data=tmp_path, token="t", deployment="d", drain_s=0.1)
    world = world_of()
    async with Service(settings) as telemetry:
        telemetry.add(add_TelemetryServiceServicer_to_server, Telemetry(), "distroml.api.telemetry.v1.TelemetryService")
        await telemetry.start()
        async with connect(telemetry.endpoint, "t") as channel:
            await world.start(telemetry=channel)
            try:
                job = await world.submit()
                request = pb.StreamLogsRequest(job=job.id, ranks=[0, 2])
                lines = [line async for response in world.jobs.StreamLogs(request) for line in response.lines]
                assert [(line.rank, line.text, line.at.ToMilliseconds()) for line in lines] == [
                    (0, "line of 0", 5),
                    (2, "line of 2", 5),
                ]
                await telemetry.drain()
                with pytest.raises(RemoteError) as caught:
                    async for _ in world.jobs.StreamLogs(request):
                        pass
                assert (caught.value.status, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "TelemetryAway")
            finally:
                await world.stop()


# ---- leases


async def test_a_role_is_held_by_one_and_the_fence_refuses_the_one_before(world_of: Any):
    world = world_of()
    streams = Streams(world.events, "dep-1")
    guards: list[Guard] = []
    taken = asyncio.Event()

    async def work(guard: Guard) -> None:
        guards.append(guard)
        taken.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(Leadership(world.state, "cycle", ttl_s=1).run(work))
    await asyncio.wait_for(taken.wait(), 5)
    taken.clear()
    second = asyncio.create_task(Leadership(world.state, "cycle", ttl_s=1).run(work))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(taken.wait(), 0.6)
    first.cancel()
    await asyncio.wait_for(taken.wait(), 5)
    try:
        assert len(guards) == 2
        step = _submission()
        with pytest.raises(Fenced):
            await streams.commit_steps([step], context=streams.context(), guards=(guards[0],))
        await streams.commit_steps([step], context=streams.context(), guards=(guards[1],))
    finally:
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


async def test_work_that_finds_itself_fenced_ends_and_the_role_is_sought_again(world_of: Any):
    world = world_of()
    runs = 0
    again = asyncio.Event()

    async def work(guard: Guard) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise Fenced(guard.key)
        again.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Leadership(world.state, "cycle", ttl_s=1).run(work))
    await asyncio.wait_for(again.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert runs == 2


def _submission() -> Any:
    from distroml.scheduler.domain.job import commands as c
    from distroml.scheduler.domain.plan import Step

    spec = completed(JobSpec(name="x", command=("a.py",)), project="default")
    return Step(job="job-1", job_commands=(c.Submit(at_ms=1, job="job-1", spec=spec),))


# ---- validation


GOOD = completed(JobSpec(name="x", command=("a.py",)), project="lab")


def test_a_complete_specification_is_sound():
    assert violations(GOOD) == ()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "x" * 64}, "spec.name"),
        ({"project": "A"}, "spec.project"),
        ({"command": ()}, "spec.command"),
        ({"command": ("-m",)}, "spec.command"),
        ({"command": ("a\0b",)}, "spec.command"),
        ({"env": {"DISTROML_X": "1"}}, "spec.env[DISTROML_X]"),
        ({"env": {"A": "x\0"}}, "spec.env[A]"),
        ({"env": {"A": "x" * 40_000}}, "spec"),
        ({"packages": "zz"}, "spec.packages"),
        ({"workers": WorkerRange(0, 1)}, "spec.workers.min"),
        ({"workers": WorkerRange(1, 257)}, "spec.workers.max"),
        ({"workers": WorkerRange(3, 3, 2)}, "spec.workers.per_node"),
        ({"workers": WorkerRange(1, 1, -1)}, "spec.workers.per_node"),
        ({"priority": 10**7}, "spec.priority"),
        ({"retry": RetryPolicy(-1, -1)}, "spec.retry.max_failures"),
        ({"retry": RetryPolicy(1, -2)}, "spec.retry.max_preemptions"),
        ({"checkpoint": CheckpointPolicy(0)}, "spec.checkpoint.keep"),
        ({"grace_s": -1}, "spec.grace_s"),
        ({"hang_timeout_s": -1}, "spec.hang_timeout_s"),
        ({"log_cap_bytes": 10}, "spec.log_cap_bytes"),
        ({"compress": "zip"}, "spec.compress"),
        ({"sync_every": -1}, "spec.sync_every"),
        ({"backend": "ucx"}, "spec.backend"),
        ({"backend": "MPI"}, "spec.backend"),
        ({"backend": "auto"}, "spec.backend"),
        ({"backend": "mpi", "workers": WorkerRange(1, 2)}, "spec.workers"),
        ({"backend": "mpi", "workers": WorkerRange(4, 4, 2)}, "spec.workers.per_node"),
        ({"labels": {str(i): "" for i in range(65)}}, "spec.labels"),
    ],
)
def test_each_wrong_field_is_named(change: dict[str, Any], field: str):
    from dataclasses import replace

    assert [name for name, _ in violations(replace(GOOD, **change))] == [field]
