"""`bench`: what this machine's, or this job's, processes get out of their links."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distroml.cli import output
from distroml.cli.errors import CliError, UsageError
from distroml.cli.options import Json
from distroml.workerlink import environment

if TYPE_CHECKING:
    from distroml.runtime.comm.report import CommReport

app = typer.Typer(no_args_is_help=True, help="Measure what training rests on; runs here, without a control plane.")

_SCHEMES = "bf16,int8,int4,sign,topk:0.01,randomk:0.01,powersgd:1,powersgd:4"
_MODULE = "distroml.runtime.profile.communication"
_POLL_S = 0.1


@app.callback()
def _group() -> None: ...


@app.command()
def comm(
    workers: Annotated[int, typer.Option(help="Local processes to start; inside a job its own ranks are taken.")] = 2,
    schemes: Annotated[str, typer.Option(help="Compression schemes, separated by commas.")] = _SCHEMES,
    megabytes: Annotated[float, typer.Option(help="Size of the gradients that are exchanged, in MiB.")] = 4.0,
    timeout_s: Annotated[float, typer.Option("--timeout", help="Seconds after which it is given up.")] = 300.0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw up to which bandwidth each scheme pays.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure links, all-reduce algorithms and compression schemes on live processes, and say which pays when.

    Inside a job it measures the job's own ranks: distroml run --workers 2 -- -m distroml.cli bench comm
    """
    names = [name.strip() for name in schemes.split(",") if name.strip()]
    _check(names, megabytes, workers, timeout_s)
    from distroml.cli import bench_output

    # One rank of a job runs the whole command: the first speaks for all.
    inside = int(os.environ.get("WORLD_SIZE", "1")) > 1
    report = _here(names, megabytes, timeout_s) if inside else _started(names, megabytes, workers, timeout_s)
    if report is None:
        return
    if picture is not None:
        try:
            picture.write_text(bench_output.draw(report), "utf-8")
        except OSError as error:
            raise UsageError(f"cannot write the picture to {picture}: {error}") from error
    if json:
        output.print_json(bench_output.as_dict(report))
    else:
        bench_output.show(report)


def _check(names: list[str], megabytes: float, workers: int, timeout_s: float) -> None:
    from distroml.planner.compression import UnknownScheme, parse_spec

    for name in names:
        try:
            parse_spec(name)
        except UnknownScheme as error:
            raise UsageError(str(error)) from error
    if not 0.1 <= megabytes <= 1024:
        raise UsageError(f"--megabytes is {megabytes:g}; give 0.1 to 1024")
    if not 2 <= workers <= 64:
        raise UsageError(f"--workers is {workers}; one process has no link, give 2 to 64")
    if timeout_s <= 0:
        raise UsageError(f"--timeout is {timeout_s:g}; give seconds above 0")


def _words(names: list[str], megabytes: float) -> list[str]:
    return [sys.executable, "-m", _MODULE, "--megabytes", str(megabytes), "--schemes", *names]


def _here(names: list[str], megabytes: float, timeout_s: float) -> CommReport | None:
    """This process is a rank of a job: its place is in the environment. The report, on rank 0."""
    # The agent knows this process, and would refuse its child.
    own = {name: value for name, value in os.environ.items() if name != environment.LINK_SOCKET}
    try:
        done = subprocess.run(_words(names, megabytes), env=own, stdout=subprocess.PIPE, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise CliError(
            f"not done within {timeout_s:g} s", hint="the other ranks must run it too; or give --timeout"
        ) from None
    if done.returncode:
        raise CliError("measuring failed on this rank; the lines above say why")
    return _decoded(done.stdout) if os.environ.get("RANK", "0") == "0" else None


def _started(names: list[str], megabytes: float, workers: int, timeout_s: float) -> CommReport:
    """Start `workers` processes on this machine, and read what the first says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(workers)}
    # A job of one worker is no world: its agent, its store and its back end are not these processes'.
    others = {name: value for name, value in os.environ.items() if not name.startswith(("DISTROML_", "TORCHELASTIC_"))}
    environ = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **others, **place}
    words = [*_words(names, megabytes), "--device", "cpu", "--attached"]
    with tempfile.TemporaryDirectory(prefix="distroml-bench-") as folder:
        answer = Path(folder, "answer")
        complaints = [Path(folder, f"rank{rank}") for rank in range(workers)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, complaint in enumerate(complaints):
                own = {**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                with answer.open("wb" if rank == 0 else "ab") as out, complaint.open("wb") as err:
                    processes.append(subprocess.Popen(words, env=own, stdin=subprocess.PIPE, stdout=out, stderr=err))
            _wait(processes, complaints, timeout_s)
            return _decoded(answer.read_bytes())
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _wait(processes: list[subprocess.Popen[bytes]], complaints: list[Path], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with output.err.status("starting processes") as shown:
        while any(process.poll() is None for process in processes):
            for rank, process in enumerate(processes):
                if process.returncode:
                    lines = complaints[rank].read_text("utf-8", "replace").strip().splitlines()
                    why = lines[-1] if lines else f"it ended with {process.returncode}"
                    raise CliError(f"rank {rank} failed: {why}", hint="fewer --workers, or fewer --megabytes, may fit")
            if time.monotonic() > deadline:
                raise CliError(f"not done within {timeout_s:g} s", hint="give --timeout, or fewer --schemes")
            if said := complaints[0].read_text("utf-8", "replace").split("\n")[:-1]:
                shown.update(f"measuring {said[-1]}")
            time.sleep(_POLL_S)
    for rank, process in enumerate(processes):
        if process.returncode:
            raise CliError(f"rank {rank} ended with {process.returncode} and measured nothing")


def _decoded(text: bytes) -> CommReport:
    import msgspec

    from distroml.runtime.comm.report import CommReport

    lines = text.splitlines()
    if not lines:
        raise CliError("rank 0 ended without a report")
    return msgspec.json.decode(lines[-1], type=CommReport)
