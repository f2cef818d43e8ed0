"""`checkpoints …`: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from distroml.api.checkpoint.v1 import checkpoint_pb2
from distroml.cli import output
from distroml.cli.client import Plane, call
from distroml.cli.errors import EXIT_DONE, EXIT_JOB_FAILED, UsageError
from distroml.cli.options import Data, JobName, Json
from distroml.events import fresh_id

app = typer.Typer(no_args_is_help=True, help="List, verify and delete checkpoints.")
Step = Annotated[int, typer.Option("--step", min=0, help="The checkpoint's step.")]


@app.command(name="list")
def list_(job: JobName, data: Data, json: Json = False) -> None:
    """List a job's checkpoints, newest first."""

    async def collect(plane: Plane) -> list[checkpoint_pb2.Checkpoint]:
        found: list[checkpoint_pb2.Checkpoint] = []
        token = ""
        id_ = await job_id(plane, job)
        while True:
            request = checkpoint_pb2.ListCheckpointsRequest(job=id_, page_size=1000, page_token=token)
            page = await plane.checkpoints.ListCheckpoints(request)
            found += page.checkpoints
            token = page.next_page_token
            if not token:
                return found

    found = call(data, collect)
    if json:
        output.print_json([output.as_dict(one) for one in found])
        return
    output.table(
        ("STEP", "STATE", "GENERATION", "SHARDS", "SIZE", "WRITTEN", "REUSED", "SECONDS", "MANIFEST"),
        (
            (
                str(one.step),
                one.state.lower() + (" pinned" if one.pinned else ""),
                str(one.generation),
                str(one.shards),
                output.size(one.bytes_total),
                output.size(one.bytes_written),
                output.size(one.bytes_reused),
                f"{one.save_s:.2f}",
                one.manifest_hash[:12],
            )
            for one in found
        ),
        empty="the job has no checkpoint yet",
    )


@app.command()
def verify(
    job: JobName,
    data: Data,
    step: Annotated[int, typer.Option(min=0, help="The checkpoint's step [default: the newest].")] = 0,
    json: Json = False,
) -> None:
    """Read every byte of a checkpoint and compare it with its hash."""

    async def check(plane: Plane) -> checkpoint_pb2.VerifyCheckpointResponse:
        id_ = await job_id(plane, job)
        wanted = step
        if not wanted:
            newest = await plane.checkpoints.GetLatest(checkpoint_pb2.GetLatestRequest(job=id_))
            if not newest.HasField("checkpoint"):
                raise UsageError(f"{job} has no sound checkpoint", hint=f"see `distroml checkpoints list {job}`")
            wanted = newest.checkpoint.step
        request = checkpoint_pb2.VerifyCheckpointRequest(job=id_, step=wanted)
        return await plane.checkpoints.VerifyCheckpoint(request, timeout=600)

    answer = call(data, check)
    if json:
        output.print_json(output.as_dict(answer))
    elif answer.sound:
        output.out.print(f"sound: {answer.chunks} chunks, {output.size(answer.bytes)}")
    else:
        output.out.print("damaged:")
        for name in answer.damaged:
            output.out.print(f"  {name}", markup=False)
    raise typer.Exit(EXIT_DONE if answer.sound else EXIT_JOB_FAILED)


@app.command()
def delete(job: JobName, step: Step, data: Data, json: Json = False) -> None:
    """Remove a checkpoint from the catalogue and free its bytes."""

    async def remove(plane: Plane) -> None:
        request = checkpoint_pb2.DeleteCheckpointRequest(
            job=await job_id(plane, job), step=step, request_id=fresh_id("req")
        )
        await plane.checkpoints.DeleteCheckpoint(request)

    call(data, remove)
    if json:
        output.print_json({"deleted": step})
    else:
        output.out.print(f"checkpoint of step {step} deleted")


async def job_id(plane: Plane, job: str) -> str:
    """The id behind a job's id or name."""
    from distroml.api.scheduler.v1 import jobs_pb2

    return (await plane.jobs.GetJob(jobs_pb2.GetJobRequest(job=job))).id
