"""Jobs over MPI: their ranks take the seats of an mpirun, and a world that changes is begun afresh."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import client
from tests.e2e.conftest import Plane, tails, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
JOBS = Path(__file__).parent / "jobs"
LOST = "killed by SIGKILL; MPI cannot go on without a rank"


def data(plane: Plane, job: str, name: str) -> list[dict[str, Any]]:
    return [e["data"] for e in plane.cli.events(job) if e["type"].endswith("." + name)]


def newest_job(plane: Plane) -> str:
    """Empty while there is none; asked in this process, since a test asks often."""

    async def ask(plane: client.Plane) -> str:
        answer = await plane.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=1))
        return answer.jobs[0].id if answer.jobs else ""

    return client.call(plane.folder.path, ask)


def pid_of_rank(plane: Plane, job: str, generation: int, rank: int) -> int | None:
    started = data(plane, job, "worker.Started")
    of = (int(e["pid"]) for e in started if (int(e["generation"]), e.get("rank", 0)) == (generation, rank))
    return next(of, None)


def in_folders_of_mpirun(plane: Plane) -> list[str]:
    """Processes of this plane's mpiruns: they, their holders and their seats."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                place = os.readlink(entry / "cwd")
            except OSError:
                continue
            if place.startswith(str(plane.folder.path)) and "/mpi." in place:
                found.append(entry.name)
    return found


def test_a_resize_and_a_killed_rank_are_each_followed_by_a_fresh_world(plane: Plane, tmp_path: Path) -> None:
    gate, earlier = tmp_path / "gate", newest_job(plane)
    run = plane.cli.start("run", "--backend", "mpi", "--workers", "2", "tiny.py", "120", "0.2", str(gate), cwd=JOBS)
    try:
        job = str(wait_for(lambda: (newest := newest_job(plane)) != earlier and newest, 150))
        wait_for(lambda: data(plane, job, "Committed"), 150, lambda: plane.cli.explain(job))
        plane.cli("job", "resize", job, "3")
        wait_for(lambda: pid_of_rank(plane, job, 2, 1), 150, lambda: plane.cli.explain(job))
        saved = max(int(e["step"]) for e in data(plane, job, "Committed"))
        wait_for(lambda: max(int(e["step"]) for e in data(plane, job, "Committed")) > saved, 150)
        victim = pid_of_rank(plane, job, 2, 1)
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        gate.touch()
        out, told = run.communicate(timeout=150)
    finally:
        run.kill()
    assert run.returncode == 0, (out, told, tails(plane.folder))
    assert "3 workers on 1 node over mpi in generation 3" in told
    assert LOST in told
    assert LOST in plane.cli("job", "explain", job).stdout
    started = data(plane, job, "worker.Started")
    assert [int(e["generation"]) for e in started] == [1, 1, 2, 2, 2, 3, 3, 3], "all processes are new each time"
    firsts = [
        min(int(e["step"]) for e in data(plane, job, "StepRecorded") if int(e["generation"]) == n) for n in (2, 3)
    ]
    assert firsts[0] == saved + 1, "a resize loses no step"
    assert firsts[1] > saved + 1, "a new world goes on from the last checkpoint"
    assert sum("finished at 120" in line for line in out.splitlines()) == 3
    wait_for(lambda: not in_folders_of_mpirun(plane), 20)


def test_without_mpi_no_rank_starts_and_it_is_said_what_to_install(plane: Plane) -> None:
    options = ("--backend", "mpi", "--workers", "2", "--max-failures", "0", "--env", "PATH=/nowhere")
    told = plane.cli("run", *options, "tiny.py", "5", code=1, cwd=JOBS).stderr
    assert "there is no mpirun on PATH; install Open MPI" in told
    job = re.search(r"job-\w+", told)
    assert job is not None
    assert not data(plane, job[0], "worker.Started")


def test_bench_comm_measures_the_ranks_of_a_job(plane: Plane, tmp_path: Path) -> None:
    bench = ("-m", "distroml.cli", "bench", "comm", "--schemes", "int8", "--megabytes", "0.5")
    done = plane.cli("run", "--workers", "2", "--max-failures", "0", *bench, cwd=tmp_path)
    assert "[0] 2 processes on 1 host, gloo" in done.stdout
    assert re.search(r"\[0\] int8 +3\.9", done.stdout), done.stdout
    # What the measuring says of itself is all there is, and no rank but the first speaks.
    others = [line for line in done.stdout.splitlines() if not line.startswith("[0]")]
    assert not others, others
