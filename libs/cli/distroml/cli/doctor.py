"""`doctor`: is this machine fit, and is the control plane well?"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import platform
import resource
import shutil
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import cast

import grpc
import grpc.aio
import typer
from grpc_health.v1 import health_pb2

from distroml.cli import output
from distroml.cli.doctor_servers import history, lines, object_store, servers, traces
from distroml.cli.errors import EXIT_DONE, EXIT_JOB_FAILED, CliError
from distroml.cli.finding import Finding, Verdict
from distroml.cli.options import Data, Json
from distroml.cli.plane import control, leftovers
from distroml.cli.plane.datafolder import DataFolder, Endpoints
from distroml.cli.plane.elsewhere import named
from distroml.workerlink.cores import usable_cores


def doctor(data: Data, json: Json = False) -> None:
    """Check this machine and the control plane; exits 1 if something is wrong."""
    findings = [finding for check in CHECKS for finding in check(data)]
    if json:
        output.print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "problem": "[red]problem[/]"}
        for finding in findings:
            output.out.print(f"{marks[finding.verdict]}  {finding.check:<14} {output.escape(finding.text)}")
            if finding.advice:
                output.out.print(f"{'':>9}{'':<14} → {finding.advice}", markup=False)
    raise typer.Exit(EXIT_JOB_FAILED if any(f.verdict == "problem" for f in findings) else EXIT_DONE)


def interpreter(_: Path) -> Iterator[Finding]:
    """The running Python."""
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")


def training_stack(_: Path) -> Iterator[Finding]:
    """Whether torch is there, and which devices it sees."""
    if importlib.util.find_spec("torch") is None:
        yield Finding("torch", "problem", "not installed", "pip install 'distroml[torch]'")
        return
    import torch
    import torch.distributed

    devices = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "CPU only"
    yield Finding("torch", "ok", f"{torch.__version__}, {devices}")
    backends = [name for name in ("gloo", "nccl") if torch.distributed.is_backend_available(name)]
    verdict: Verdict = "ok" if "gloo" in backends else "problem"
    yield Finding("backends", verdict, ", ".join(backends), "" if verdict == "ok" else "install a torch with gloo")


def mpi(_: Path) -> Iterator[Finding]:
    """Whether jobs can run with `--backend mpi`; nothing is wrong where they cannot."""
    advice = "for --backend mpi only: "
    launcher = shutil.which("mpirun")
    if launcher is None:
        advice += "install Open MPI (Debian: apt-get install openmpi-bin libopenmpi-dev)"
        yield Finding("mpi", "ok", "no mpirun on PATH", advice)
        return
    try:
        # Loads the library, and starts nothing.
        importlib.import_module("mpi4py").rc.initialize = False
        library = str(importlib.import_module("mpi4py.MPI").Get_library_version())
    except (ImportError, RuntimeError) as error:
        yield Finding(
            "mpi", "ok", f"{launcher}, but {str(error).splitlines()[0]}", advice + "pip install 'distroml[mpi]'"
        )
        return
    name = library.partition(",")[0].strip()
    fit = name.startswith("Open MPI")
    yield Finding("mpi", "ok", f"{name}, {launcher}", "" if fit else advice + "ranks are started by Open MPI's mpirun")


def machine(data: Path) -> Iterator[Finding]:
    """Cores, memory, disk, and the limits that training meets."""
    import psutil  # slow to import, and needed here only

    memory = psutil.virtual_memory()
    cores, there = usable_cores(), os.cpu_count() or 1
    counted = f"{cores} cores" if cores >= there else f"{cores} of {there} cores for us"
    yield Finding("machine", "ok", f"{counted}, {output.size(memory.available)} of memory free")
    # Unlike a path's own `exists`, this is no error where one may not look.
    place = next(folder for folder in (data, *data.parents) if os.path.exists(folder))
    free = shutil.disk_usage(place).free
    verdict: Verdict = "ok" if free > 5e9 else "warning" if free > 1e9 else "problem"
    advice = "" if verdict == "ok" else f"free space on the file system of {place}, or give another folder with --data"
    yield Finding("disk", verdict, f"{output.size(free)} free for {data}", advice)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < 1024
    yield Finding("open files", "warning" if few else "ok", f"limit {soft}", f"ulimit -n {hard}" if few else "")
    try:
        socket.getaddrinfo(socket.gethostname(), None)
        yield Finding("host name", "ok", f"{socket.gethostname()} resolves")
    except OSError:
        yield Finding(
            "host name",
            "warning",
            f"{socket.gethostname()} does not resolve",
            "add it to /etc/hosts; gloo looks it up unless GLOO_SOCKET_IFNAME is set (the agent sets it)",
        )


def control_plane(data: Path) -> Iterator[Finding]:
    """The data folder, and the health of each service; of those that the environment names, where it names some."""
    try:
        elsewhere = named(os.environ)
    except CliError as error:
        yield Finding("control plane", "problem", error.message, error.hint)
        return
    if elsewhere is not None:
        for name, healthy in asyncio.run(_ask(elsewhere.endpoints, elsewhere.token)).items():
            address = elsewhere.endpoints.services[name]
            yield Finding(name, "ok" if healthy else "problem", address, "" if healthy else "see what runs there")
        return
    folder = DataFolder(data)
    try:
        folder.check_readable()
        if not (data / "format.json").exists():
            yield Finding("data folder", "ok", f"{data} is not in use yet")
            return
        deployment = folder.deployment()
    except CliError as error:
        yield Finding("data folder", "problem", error.message, error.hint)
        return
    yield Finding("data folder", "ok", f"{data} ({deployment})")
    mode = folder.token_file.stat().st_mode & 0o777 if folder.token_file.exists() else 0o600
    if mode & 0o077:
        yield Finding("token", "problem", f"others can read it (mode {mode:o})", f"chmod 600 {folder.token_file}")
    endpoints = control.running(folder)
    if endpoints is None:
        text = "starting or stopping" if folder.is_locked() else "not running"
        yield Finding("control plane", "ok", text, "start it with `distroml up`")
        if not folder.is_locked() and (left := leftovers.holders(folder)):
            yield Finding(
                "workers",
                "warning",
                f"{len(left)} processes of jobs go on without a control plane",
                "`distroml up` takes them back, `distroml down` ends them",
            )
        return
    for name, healthy in asyncio.run(_ask(endpoints, folder.token())).items():
        advice = f"it is restarted within seconds; see {folder.logs / name}.log"
        yield Finding(name, "ok" if healthy else "problem", endpoints.services[name], "" if healthy else advice)
        for part, why in _ill_parts(endpoints.metrics[name]).items() if healthy else ():
            yield Finding(name, "warning", f"{part}: {why}", "it serves on without")


def _ill_parts(metrics: str) -> dict[str, str]:
    """What a service says of its parts that do not work; nothing where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{metrics}/healthz", timeout=3) as answer:
            parts = cast("dict[str, dict[str, str]]", json.load(answer)["parts"])
    except (OSError, ValueError, KeyError):
        return {}
    return {part: said["why"] for part, said in parts.items() if said.get("why")}


async def _ask(endpoints: Endpoints, token: str) -> dict[str, bool]:
    async def one(address: str) -> bool:
        request = health_pb2.HealthCheckRequest().SerializeToString()
        async with grpc.aio.insecure_channel(address) as channel:
            check = channel.unary_unary("/grpc.health.v1.Health/Check")  # pyright: ignore
            try:
                metadata = (("authorization", f"Bearer {token}"),)
                answer = cast("bytes", await check(request, timeout=3, metadata=metadata))
            except grpc.aio.AioRpcError:
                return False
            return health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING

    names = list(endpoints.services)
    return dict(zip(names, await asyncio.gather(*(one(endpoints.services[name]) for name in names)), strict=True))


CHECKS: tuple[Callable[[Path], Iterator[Finding]], ...] = (
    *(interpreter, training_stack, mpi, machine),
    *(servers, object_store, history, lines, traces, control_plane),
)
