"""`run` and `submit`: a script becomes a job."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import output, spec
from distroml.cli.client import Plane, call, open_plane, translated
from distroml.cli.errors import EXIT_DONE, EXIT_JOB_FAILED, CliError, UsageError
from distroml.cli.following import Follower
from distroml.cli.options import Data, Json
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder
from distroml.cli.plane.elsewhere import named
from distroml.events import fresh_id
from distroml.workerlink.cores import usable_cores

Script = Annotated[
    list[str], typer.Argument(metavar="SCRIPT", help="Python script, or -m and a module; then its arguments.")
]
Workers = Annotated[str, typer.Option("--workers", "-w", help="Number of workers, or a range such as 2..8.")]
Name = Annotated[str, typer.Option(help="Job name [default: the script's].")]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE", help="Environment; repeatable.")]
BundleRoot = Annotated[Path | None, typer.Option("--bundle", help="Folder with the code [default: this one].")]
Priority = Annotated[int, typer.Option(min=-1_000_000, max=1_000_000, help="Higher goes first.")]
MaxFailures = Annotated[
    int | None, typer.Option(min=0, max=1_000_000, help="Worker failures before the job fails [default: 3].")
]
Keep = Annotated[int | None, typer.Option(min=1, max=10_000, help="Committed checkpoints to keep [default: 3].")]
Compress = Annotated[
    str,
    typer.Option(
        help="Compression of gradients where the script does not say: auto, or a scheme such as int8 or powersgd:4 "
        "[default: none]."
    ),
]
SyncEvery = Annotated[
    int,
    typer.Option(
        min=0,
        max=1_000_000,
        help="Where the script does not say, replicas step by themselves and meet after so many steps (local SGD, "
        "DiLoCo) [default: gradients are summed at every step].",
        show_default=False,
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="Who carries the collectives: auto, gloo, nccl, or mpi, whose ranks mpirun starts on one node [default: "
        "auto, nccl on GPUs and gloo elsewhere].",
    ),
]
# What a job file has a field for.
_OF_A_SCRIPT = frozenset(
    {"workers", "name", "env", "bundle", "priority", "max_failures", "keep", "compress", "sync_every", "backend"}
)
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def run(
    script: Script,
    data: Data,
    workers: Workers = "1",
    name: Name = "",
    env: Env = None,
    bundle: BundleRoot = None,
    priority: Priority = 0,
    max_failures: MaxFailures = None,
    keep: Keep = None,
    compress: Compress = "",
    sync_every: SyncEvery = 0,
    backend: Backend = "",
    json: Json = False,
) -> None:
    """Run a torchrun-style script on N workers and follow it to its end.

    Without a running control plane one is started for the job and ended after it. Ctrl-C cancels the job.
    """
    request = spec.from_command(
        script,
        name=name,
        workers=workers,
        env=env or [],
        bundle=bundle,
        priority=priority,
        max_failures=max_failures,
        keep=keep,
        compress=compress,
        sync_every=sync_every,
        backend=backend,
    )
    folder = DataFolder(data)
    slots = max(request.spec.workers.max, usable_cores())

    async def follow_it() -> int:
        async with open_plane(data) as plane:
            job = await _submit(plane, request)
            return await Follower(plane, job, json=json).to_the_end()

    with contextlib.ExitStack() as stack:
        if named(os.environ) is None:
            if control.running(folder) is None and not json:
                output.err.print("no control plane runs: starting one for this job …", style="dim")
            stack.enter_context(control.ephemeral(folder, slots=slots))
        code = translated(lambda: asyncio.run(follow_it()))
    raise typer.Exit(code)


def submit(
    context: typer.Context,
    data: Data,
    script: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCRIPT", help="Python script, or -m and a module; then its arguments."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-F", help="Job file (YAML) instead of a script; see docs/jobs.md.")
    ] = None,
    workers: Workers = "1",
    name: Name = "",
    env: Env = None,
    bundle: BundleRoot = None,
    priority: Priority = 0,
    max_failures: MaxFailures = None,
    keep: Keep = None,
    compress: Compress = "",
    sync_every: SyncEvery = 0,
    backend: Backend = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, submit nothing.")] = False,
    request_id: Annotated[str, typer.Option(help="Makes a repeated submit answer as the first one.")] = "",
    json: Json = False,
) -> None:
    """Submit a job and return at once."""
    if (file is None) == (not script):
        raise UsageError("give a script, or a job file with --file", hint="distroml submit train.py --epochs 3")
    if file is not None:
        if given := _given(context, _OF_A_SCRIPT):
            raise UsageError(f"{', '.join(given)} goes with a script, not with --file", hint=f"write it into {file}")
        from distroml.cli import jobfile  # YAML is slow to import, and needed here only

        request = spec.from_job_file(jobfile.read(file).values, file)
    else:
        request = spec.from_command(
            script or [],
            name=name,
            workers=workers,
            env=env or [],
            bundle=bundle,
            priority=priority,
            max_failures=max_failures,
            keep=keep,
            compress=compress,
            sync_every=sync_every,
            backend=backend,
        )
    job = call(data, lambda plane: _submit(plane, request, dry_run=dry_run, request_id=request_id))
    if json:
        output.print_json(output.as_dict(job))
        return
    if dry_run:
        output.out.print(f"the job is valid; it would be {output.state_text(jobs_pb2.JobState.Name(job.state))}")
        if job.message:
            output.out.print(job.message, markup=False)
        return
    output.out.print(f"submitted {job.id} ({job.spec.name})")
    output.out.print(f"next: distroml job watch {job.id} · distroml job logs {job.id} -f")


def _given(context: typer.Context, names: Collection[str]) -> list[str]:
    """Which of these options somebody typed, as they are typed."""
    sources = {name: context.get_parameter_source(name) for name in names}
    typed = sorted(name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return [f"--{name.replace('_', '-')}" for name in typed]


async def _submit(plane: Plane, request: spec.Request, *, dry_run: bool = False, request_id: str = "") -> jobs_pb2.Job:
    bundle = await spec.upload(plane, request.root)
    if bundle.skipped_links:
        left_out = ", ".join(bundle.skipped_links[:5])
        output.err.print(f"links that leave {request.root} were not packed: {left_out}", markup=False)
    wanted = jobs_pb2.JobSpec()
    wanted.CopyFrom(request.spec)
    wanted.bundle = bundle.sha256
    return await plane.jobs.SubmitJob(
        jobs_pb2.SubmitJobRequest(spec=wanted, request_id=request_id or fresh_id("req"), validate_only=dry_run)
    )


__all__ = ["EXIT_DONE", "EXIT_JOB_FAILED", "PASS_THROUGH", "CliError", "run", "submit"]
