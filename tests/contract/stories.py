"""What each owner of streams does in a job's life, told by its clients: it writes every event that it writes often."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack

from distroml.api.checkpoint.v1 import checkpoint_pb2 as ckpt
from distroml.api.checkpoint.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from distroml.api.common.v1 import common_pb2
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.api.scheduler.v1 import jobs_pb2 as jobs
from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceStub
from distroml.events import fresh_id
from services.checkpoint.tests.workers import Workers
from services.rendezvous.tests.rendezvous_agents import Agent as Member
from services.rendezvous.tests.rendezvous_agents import form
from services.scheduler.tests.agents import Agent as Node
from tests.contract.calls import until
from tests.contract.targets import Running


async def of_a_job(service: Running) -> str:
    """A job is submitted, changed, placed, runs, succeeds, and gives its slots back."""
    name = fresh_id("node")
    async with service.channel() as channel, service.channel(actor="agent") as agents:
        stub = JobServiceStub(channel)
        node = Node(agents, name, 2)
        try:
            spec = jobs.JobSpec(name="told", command=["train.py"], workers=jobs.WorkerRange(min=2, max=2), priority=9)
            job = (await stub.SubmitJob(jobs.SubmitJobRequest(spec=spec))).id
            await stub.SetPriority(jobs.SetPriorityRequest(job=job, priority=1000))
            await node.told(job)
            formed = rdzv.Generation(job=job, number=1, world_size=2, attempt=1)
            stream = f"rendezvous/job/{job}"
            await service.tell(
                stream, ("rendezvous.generation.GenerationFormed", rdzv.GenerationFormed(generation=formed))
            )
            await until(lambda: _is(stub, job, "RUNNING"), "the job runs")
            await service.tell(
                stream, ("rendezvous.generation.Closed", rdzv.Closed(attempt=1, outcome="Succeeded", generation=1))
            )
            await node.told(job, stop="Finished")
            node.stopped(job, 1)
            await node.rid_of(job)
            await stub.CordonNode(jobs.CordonNodeRequest(node=name))
        finally:
            await node.close()
    return job


async def _is(stub: JobServiceStub, job: str, state: str) -> bool:
    found = await stub.GetJob(jobs.GetJobRequest(job=job))
    return jobs.JobState.Name(found.state) == f"JOB_STATE_{state}"


async def of_generations(service: Running) -> str:
    """Two nodes form a generation, one worker is killed, they form another one, and end well."""
    job = fresh_id("job")
    killed = rdzv.WorkerExited(signal=9, category=common_pb2.FAILURE_CATEGORY_SIGNAL, message="killed")
    async with AsyncExitStack() as stack:
        a, b = [await stack.enter_async_context(Member(service.endpoint, node, job=job)) for node in "ab"]
        for member in (a, b):
            await member.join()
        await form(a, b)
        await a.report(1, started=rdzv.WorkerStarted(pid=7, start="warm", node="a", seconds=0.5))
        await b.report(1, exited=killed)
        await a.expect("opened")
        await form(a, b, after=1)
        for member in (a, b):
            await member.exits(2)
        assert (await a.expect("closed")).outcome == "Succeeded"
    return job


async def of_checkpoints(service: Running) -> str:
    """Two saves are committed, one of them pinned, and a third one fails."""
    workers = Workers(service.objects, job=fresh_id("job"))
    async with service.channel(actor="agent") as channel:
        stub = CheckpointServiceStub(channel)
        for step in (10, 20):
            opened = await stub.BeginSave(workers.begin(step))
            for rank in range(2):
                await stub.ReportShard(workers.write(rank, step, opened))
        await stub.PinCheckpoint(ckpt.PinCheckpointRequest(job=workers.job, step=10, ttl_s=60, owner="ann"))
        await stub.BeginSave(workers.begin(30))
        await stub.ReportSaveFailed(
            ckpt.ReportSaveFailedRequest(job=workers.job, generation=1, step=30, rank=1, message="no room")
        )
    return workers.job


STORIES: Mapping[str, Callable[[Running], Awaitable[str]]] = {
    "scheduler": of_a_job,
    "rendezvous": of_generations,
    "checkpoint": of_checkpoints,
}
"""By service: what tells it, and gives the job that it was about."""
