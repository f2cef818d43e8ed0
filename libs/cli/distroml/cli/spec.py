"""From what a user typed to a `JobSpec`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.bundle import Bundle, BundleError, pack
from distroml.cli import output
from distroml.cli.client import Plane
from distroml.cli.errors import UsageError
from distroml.cli.options import MOST_INT
from distroml.cli.plane.elsewhere import named
from distroml.planner.compression import UnknownScheme, read_wish
from distroml.workerlink.backends import MPI, UnknownBackend, read_backend

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job as typed: its spec without code, and the folder with the code."""

    spec: jobs_pb2.JobSpec
    root: Path


def from_command(
    command: Sequence[str],
    *,
    name: str,
    workers: str,
    env: Sequence[str],
    bundle: Path | None,
    priority: int,
    max_failures: int | None,
    keep: int | None,
    compress: str = "",
    sync_every: int = 0,
    backend: str = "",
) -> Request:
    """A request from a command line; raises `UsageError` for what cannot be meant."""
    root = resolve_root(command, bundle, Path.cwd())
    low, high = parse_workers(workers)
    spec = jobs_pb2.JobSpec(
        name=name or default_name(command),
        project="default",
        command=relative_command(command, root, Path.cwd()),
        env=parse_env(env),
        workers=jobs_pb2.WorkerRange(min=low, max=high),
        priority=priority,
        compress=compression(compress, "--compress"),
        sync_every=sync_every,
        backend=carrier(backend, "--backend", (low, high)),
    )
    if max_failures is not None:
        spec.retry.max_failures = max_failures
    if keep is not None:
        spec.checkpoint.keep = keep
    return Request(spec=_with_environment(spec), root=root)


def from_job_file(values: Mapping[str, Any], path: Path) -> Request:
    """A request from a job file's values; paths in it are relative to the file."""
    folder = path.resolve().parent
    command: list[str] = values["command"]
    if not command:
        raise UsageError(f"{path}: `command` is empty", hint="name the script: `command: [train.py, --steps, '100']`")
    root = resolve_root(command, folder / values["bundle"] if "bundle" in values else None, folder)
    workers = values.get("workers", 1)
    if isinstance(workers, int):
        workers = {"min": workers, "max": workers}
    low = int(workers.get("min", workers.get("max", 1)))
    spec = jobs_pb2.JobSpec(
        name=values.get("name") or default_name(command),
        project=values.get("project", "default"),
        command=relative_command(command, root, folder),
        env=values.get("env", {}),
        python=values.get("python", ""),
        workers=jobs_pb2.WorkerRange(
            min=low, max=int(workers.get("max", low)), per_node=int(workers.get("per_node", 0))
        ),
        priority=values.get("priority", 0),
        grace_s=values.get("grace_s", 0),
        hang_timeout_s=values.get("hang_timeout_s", 0),
        labels=values.get("labels", {}),
        dataset=values.get("dataset", ""),
        log_cap_bytes=values.get("log_cap_bytes", 0),
        retry=jobs_pb2.RetryPolicy(**values.get("retry", {})),
        checkpoint=jobs_pb2.CheckpointPolicy(**values.get("checkpoint", {})),
        compress=compression(values.get("compress", ""), f"{path}: `compress`"),
        sync_every=values.get("sync_every", 0),
        backend=carrier(values.get("backend", ""), f"{path}: `backend`", (low, int(workers.get("max", low)))),
    )
    return Request(spec=_with_environment(spec), root=root)


def parse_workers(text: str, where: str = "--workers") -> tuple[int, int]:
    """`4` or `2..8`; raises `UsageError` for what is no such number or range, given at `where`."""
    low, _, high = text.partition("..")
    try:
        bounds = int(low), int(high or low)
    except ValueError:
        raise UsageError(f"{where} takes a number or a range such as 2..8, not {text!r}") from None
    if not 1 <= bounds[0] <= bounds[1]:
        raise UsageError(f"{where} {text}: the smallest number must be at least 1 and not above the largest")
    if bounds[1] > MOST_INT:
        raise UsageError(f"{where} {text}: so many workers nobody has")
    return bounds


def parse_env(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` pairs."""
    wrong = [pair for pair in pairs if "=" not in pair[1:]]
    if wrong:
        raise UsageError(f"--env takes NAME=VALUE, not {', '.join(map(repr, wrong))}")
    return dict(pair.split("=", 1) for pair in pairs)


def compression(text: str, where: str) -> str:
    """The job's compression in its one spelling; empty where none is asked for.

    Raises:
        UsageError: `text`, given at `where`, is no scheme.
    """
    try:
        return read_wish(text) if text else ""
    except UnknownScheme as error:
        raise UsageError(f"{where}: {error}") from error


def carrier(text: str, where: str, workers: tuple[int, int]) -> str:
    """The job's back end in its one spelling; empty for what suits the device.

    Raises:
        UsageError: `text`, given at `where`, is no back end, or cannot carry that range of workers.
    """
    try:
        name = read_backend(text) if text else ""
    except UnknownBackend as error:
        raise UsageError(f"{where}: {error}") from error
    if name == MPI and workers[0] != workers[1]:
        raise UsageError(
            f"{where}: an MPI world keeps its size, and the job asks for {workers[0]}..{workers[1]} workers",
            hint="give one number of workers, or the back end gloo",
        )
    return name


def resolve_root(command: Sequence[str], bundle: Path | None, here: Path) -> Path:
    """The folder to pack: the one named, else the working folder if the script lies in it, else the script's.

    Raises:
        UsageError: the script or the folder does not exist.
    """
    if bundle is not None:
        if not bundle.is_dir():
            raise UsageError(f"there is no folder {bundle}", hint="name the folder with the code, or leave it out")
        return bundle.resolve()
    if command[0] == "-m":
        return here.resolve()
    script = here / command[0]
    if not script.is_file():
        raise UsageError(f"there is no script {script}", hint="give a path from this folder, or `-m MODULE`")
    return here.resolve() if script.resolve().is_relative_to(here.resolve()) else script.resolve().parent


def relative_command(command: Sequence[str], root: Path, here: Path) -> list[str]:
    """The command with its script's path relative to the bundle's root."""
    if command[0] == "-m":
        return list(command)
    script = (here / command[0]).resolve()
    if not script.is_file() and (root / command[0]).is_file():
        script = root / command[0]
    if not script.is_file():
        raise UsageError(f"there is no script {script}", hint="give a path from this folder, or `-m MODULE`")
    if not script.is_relative_to(root):
        raise UsageError(f"the script {script} is not below the bundle's folder {root}", hint="name another --bundle")
    return [script.relative_to(root).as_posix(), *command[1:]]


def default_name(command: Sequence[str]) -> str:
    """A job name from a script's path or a module's name."""
    stem = command[1].rpartition(".")[2] if command[0] == "-m" and len(command) > 1 else Path(command[0]).stem
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem.lower()).strip("._-")
    return cleaned[:63].strip("._-") or "job"


def package_list_hash() -> str:
    """sha256 over this interpreter's packages and versions, so that a replay notices other ones."""
    found = sorted({f"{d.name.lower()}=={d.version}" for d in importlib.metadata.distributions() if d.name})
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def _with_environment(spec: jobs_pb2.JobSpec) -> jobs_pb2.JobSpec:
    # Nodes elsewhere, as in containers, have an interpreter of their own, and packages of their own beside it.
    if named(os.environ) is None:
        spec.python = spec.python or sys.executable
        spec.packages = package_list_hash()
    return spec


async def upload(plane: Plane, root: Path) -> Bundle:
    """Pack `root` and store it; bytes that are stored already do not travel again.

    Raises:
        UsageError: the folder cannot be packed.
    """
    with tempfile.TemporaryDirectory(prefix="distroml-") as scratch:
        try:
            bundle = pack(root, Path(scratch) / "bundle.tar.gz")
        except BundleError as error:
            raise UsageError(str(error)) from error
        with output.byte_progress("sending the code") as progress:
            await plane.jobs.PutBundle(_blocks(bundle, progress))
        return bundle


async def _blocks(bundle: Bundle, progress: Callable[[int, int], None]) -> AsyncIterator[jobs_pb2.PutBundleRequest]:
    yield jobs_pb2.PutBundleRequest(sha256=bundle.sha256, size_bytes=bundle.size_bytes)
    with bundle.path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield jobs_pb2.PutBundleRequest(data=block)
            progress(file.tell(), bundle.size_bytes)
