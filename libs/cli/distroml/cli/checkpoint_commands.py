"""`checkpoints …`: the catalogue."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distroml.api.checkpoint.v1 import checkpoint_pb2
from distroml.cli import output
from distroml.cli.client import Plane, call
from distroml.cli.errors import EXIT_DONE, EXIT_JOB_FAILED, UsageError
from distroml.cli.export import LOCAL_JOB, SHARD_BYTES, Exported, export_checkpoint, local_manifest
from distroml.cli.objects import open_objects
from distroml.cli.options import Data, JobName, Json
from distroml.events import fresh_id
from distroml.objectstore import ObjectStore
from distroml.objectstore.filesystem import open_object_store

app = typer.Typer(no_args_is_help=True, help="List, verify, export and delete checkpoints.")
# A pin that an interrupted export leaves goes by itself.
_PIN_S = 3600


class Format(StrEnum):
    """What an export writes."""

    SAFETENSORS = "safetensors"
    HF = "hf"


_MOST_STEPS = 2**63 - 1

Step = Annotated[int, typer.Option("--step", min=0, max=_MOST_STEPS, help="The checkpoint's step.")]
NewestStep = Annotated[
    int,
    typer.Option(
        "--step", min=0, max=_MOST_STEPS, help="The checkpoint's step [default: the newest].", show_default=False
    ),
]


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
    step: NewestStep = 0,
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

    with output.err.status("reading every byte of the checkpoint …"):
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


@app.command()
def export(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Job id or name; or a stand-alone run's folder.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new folder for the files.")],
    data: Data,
    step: NewestStep = 0,
    format_: Annotated[
        Format, typer.Option("--format", help="Plain safetensors; or hf: with config.json, for from_pretrained.")
    ] = Format.SAFETENSORS,
    hf_config: Annotated[
        Path | None, typer.Option(help="config.json to use with --format hf [default: the one in the checkpoint].")
    ] = None,
    shard_gb: Annotated[float, typer.Option(min=0.000001, help="Most gigabytes of a file.")] = SHARD_BYTES / 1e9,
    json: Json = False,
) -> None:
    """Write the model of a checkpoint as safetensors files; every byte is verified on the way."""
    if hf_config is not None and format_ is not Format.HF:
        raise UsageError("--hf-config goes with --format hf")
    try:
        config = hf_config.read_text() if hf_config is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {hf_config}: {error}") from error

    def write(store: ObjectStore, id_: str, manifest_hash: str) -> Exported:
        with output.byte_progress("exporting") as progress:
            return export_checkpoint(
                store,
                id_,
                manifest_hash,
                to,
                hugging_face=format_ is Format.HF,
                config=config,
                shard_bytes=int(shard_gb * 1e9),
                progress=progress,
            )

    async def from_plane(plane: Plane) -> Exported:
        id_ = await job_id(plane, job)
        found = await _checkpoint(plane, job, id_, step)
        pin = checkpoint_pb2.PinCheckpointRequest(job=id_, step=found.step, owner="export", ttl_s=_PIN_S)
        pin.request_id = fresh_id("req")
        # Pinned, so that retention does not take it away in between.
        await plane.checkpoints.PinCheckpoint(pin)
        try:
            return write(open_objects(data), id_, found.manifest_hash)
        finally:
            pin.ttl_s, pin.request_id = 0, fresh_id("req")
            await plane.checkpoints.PinCheckpoint(pin)

    folder = Path(job)
    if folder.is_dir():
        store = open_object_store(folder)
        exported = write(store, LOCAL_JOB, local_manifest(store, folder, step))
    else:
        exported = call(data, from_plane)
    if json:
        output.print_json(
            {
                "step": exported.step,
                "folder": str(exported.folder),
                "files": exported.files,
                "tensors": exported.tensors,
                "bytes": exported.size_bytes,
            }
        )
        return
    output.out.print(
        f"step {exported.step}: {exported.tensors} tensors, {output.size(exported.size_bytes)}, "
        f"in {len(exported.files)} files in {exported.folder}",
        markup=False,
    )


async def _checkpoint(plane: Plane, job: str, id_: str, step: int) -> checkpoint_pb2.Checkpoint:
    """The checkpoint of this step, or the newest sound one."""
    newest = await plane.checkpoints.GetLatest(checkpoint_pb2.GetLatestRequest(job=id_, max_step=step))
    if newest.HasField("checkpoint") and step in (0, newest.checkpoint.step):
        return newest.checkpoint
    what = f"no sound checkpoint of step {step}" if step else "no sound checkpoint"
    raise UsageError(f"{job} has {what}", hint=f"see `distroml checkpoints list {job}`")


async def job_id(plane: Plane, job: str) -> str:
    """The id behind a job's id or name."""
    from distroml.api.scheduler.v1 import jobs_pb2

    return (await plane.jobs.GetJob(jobs_pb2.GetJobRequest(job=job))).id
