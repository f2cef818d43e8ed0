"""A job whose stream was retired answers everybody as before; only the lists leave it to history."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from distroml.api.common.v1 import replay_pb2
from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.api.telemetry.v1.telemetry_pb2_grpc import (
    TelemetryServiceServicer,
    add_TelemetryServiceServicer_to_server,
)
from distroml.rpc import RemoteError, Service, ServiceSettings, connect


class History(TelemetryServiceServicer):
    """Knows every job that it is told of, by more names than are asked for."""

    def __init__(self) -> None:
        self.jobs: list[pb.Job] = []

    async def ListHistory(self, request: Any, context: Any) -> telemetry_pb2.ListHistoryResponse:
        return telemetry_pb2.ListHistoryResponse(jobs=[job for job in self.jobs if request.text in job.spec.name])


async def told(world: Any, job: str) -> tuple[Any, ...]:
    """What is told of a job by those who read it, but for the position up to which that is true."""
    shown = await world.get(job)
    explained = await world.jobs.ExplainJob(pb.ExplainJobRequest(job=job))
    shown.position = explained.job.position = ""
    watched = await anext(aiter(world.jobs.WatchJob(pb.WatchJobRequest(job=job))))
    events = [event async for page in world.jobs.ListEvents(pb.ListEventsRequest(job=job)) for event in page.events]
    verified = [one async for one in world.replay.Verify(replay_pb2.VerifyRequest(job=job))]
    return shown, explained, watched, events, verified


async def test_a_retired_job_answers_as_before_and_leaves_board_and_lists(world_of: Any, tmp_path: Any):
    history = History()
    settings = ServiceSettings(service="telemetry", data=tmp_path, token="t", deployment="d", drain_s=0.1)
    world = world_of()
    async with Service(settings) as telemetry:
        telemetry.add(add_TelemetryServiceServicer_to_server, history, "distroml.api.telemetry.v1.TelemetryService")
        await telemetry.start()
        async with connect(telemetry.endpoint, "t") as channel:
            await world.start(telemetry=channel)
            try:
                node = await world.agent("a", 2)
                job = await world.submit(request_id="once")
                await node.told(job.id)
                await world.form(job.id, 1, 1)
                await world.close_job(job.id, 1, "Succeeded")
                await node.told(job.id, stop="Finished")
                cancelled = await world.submit("other", request_id="twice")
                await world.jobs.CancelJob(pb.CancelJobRequest(job=cancelled.id, request_id="cancel"))
                holding = f"scheduler/job/{job.id}"

                # While it holds its slots it stays, however long ago it ended.
                await world.stop()
                world.overrides["retire_after_s"] = 1
                await world.start(telemetry=channel)

                async def others_left() -> bool:
                    return await world.events.streams("scheduler/job/") == [holding]

                await world.until(others_left, "the cancelled job's stream is retired")
                node = await world.agent("a", 2)
                await node.told(job.id, stop="Finished")
                before = await told(world, job.id)
                node.stopped(job.id, 1)

                async def all_left() -> bool:
                    return not await world.events.streams("scheduler/job/")

                await world.until(all_left, "its stream is retired when its slots are free")
                after = await told(world, job.id)
                # The freed slots and the ledger's own events are the only news.
                assert (after[0], after[1].reason, after[2:]) == (before[0], before[1].reason, before[2:])
                assert [differences for one in after[4] for differences in one.differences] == []

                async def all_forgotten() -> bool:
                    return not (await world.jobs.ListJobs(pb.ListJobsRequest())).jobs

                await world.until(all_forgotten, "lists leave it to history")
                await check_refusals(world, job, cancelled)
                await world.stop()
                await world.start(telemetry=channel)
                assert world.board is not None
                await world.board.refresh()
                assert not world.board.page(None)
                assert await told(world, job.id) == after

                # By its name it is found where history knows it, and by nobody else's name.
                history.jobs += [after[0], pb.Job(id="job-x", spec=pb.JobSpec(name="gpt-large"))]
                assert (await world.get("gpt")).id == job.id
                await telemetry.drain()
                with pytest.raises(RemoteError) as unknown:
                    await world.get("gpt")
                assert unknown.value.status is grpc.StatusCode.NOT_FOUND
            finally:
                await world.stop()


async def check_refusals(world: Any, job: pb.Job, cancelled: pb.Job) -> None:
    """What may be repeated is answered again, what is too late is refused, and neither makes anything live again."""
    assert (await world.submit(request_id="once")).id == job.id
    assert (await world.submit("other", request_id="twice")).id == cancelled.id
    again = await world.jobs.CancelJob(pb.CancelJobRequest(job=cancelled.id, request_id="cancel"))
    assert again.state == pb.JOB_STATE_CANCELLED
    for name, request in (
        ("CancelJob", pb.CancelJobRequest(job=job.id, request_id="late")),
        ("PauseJob", pb.PauseJobRequest(job=job.id)),
        ("SetPriority", pb.SetPriorityRequest(job=cancelled.id, priority=3)),
    ):
        with pytest.raises(RemoteError) as refused:
            await getattr(world.jobs, name)(request)
        assert refused.value.reason == "JobFinished"
    assert await world.events.streams("scheduler/job/") == []
