"""Jobs over MPI: their ranks are seats of an mpirun, and a world that lost one is begun afresh."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Plane, tails, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]
JOBS = Path(__file__).parent / "jobs"


def data(plane: Plane, job: str, name: str) -> list[dict[str, Any]]:
    return [e["data"] for e in plane.cli.events(job) if e["type"].endswith("." + name)]


def test_a_killed_rank_ends_the_world_and_the_job_goes_on_in_fresh_processes(plane: Plane, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    options = ("--backend", "mpi", "--workers", "2")
    run = plane.cli.start("run", *options, "tiny.py", "60", "0.2", str(gate), cwd=JOBS)
    try:
        job = wait_for(lambda: plane.cli.json("jobs"), 30)[0]["id"]
        wait_for(lambda: data(plane, job, "Committed"), 40, lambda: plane.cli.explain(job))
        assert "pause it, resize it" in plane.cli("job", "resize", job, "3", code=None).stderr
        os.kill(next(int(e["pid"]) for e in data(plane, job, "worker.Started") if e.get("rank") == 1), signal.SIGKILL)
        gate.touch()
        out, told = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0, (out, told, tails(plane.folder))
    assert "killed by SIGKILL; MPI cannot go on without a rank" in told
    assert "killed by SIGKILL; MPI cannot go on without a rank" in plane.cli("job", "explain", job).stdout
    assert "backend  mpi" in plane.cli("job", "show", job).stdout
    started = data(plane, job, "worker.Started")
    assert [int(e["generation"]) for e in started] == [1, 1, 2, 2], "both processes are new"
    resumed = [int(e["step"]) for e in data(plane, job, "StepRecorded") if int(e["generation"]) == 2]
    assert min(resumed) > 10, "it goes on from its checkpoint"
    assert sum("finished at 60" in line for line in out.splitlines()) == 2
    wait_for(lambda: not _mpirun_of(plane), 20)


def _mpirun_of(plane: Plane) -> list[str]:
    """Processes that run in a folder of an mpirun below this plane's."""
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
