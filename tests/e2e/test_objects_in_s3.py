"""Bundles and checkpoints in a real MinIO: a job recovers from them, and outlives the server's death."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.stack import Running, running
from deploy.stack.minio import SECRET_KEY, Minio
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder
from distroml.objectstore.location import open_location
from tests.e2e.conftest import Cli, Plane, tails, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
STEPS = 60
JOBS = Path(__file__).parent / "jobs"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(Minio(), tmp_path_factory.mktemp("minio")) as it, pytest.MonkeyPatch.context() as environ:
        for name, value in it.server.settings(it.ports).items():
            environ.setenv(name, value)
        yield it


@pytest.fixture(scope="module")
def plane(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    folder = DataFolder(tmp_path_factory.mktemp("plane"))
    endpoints = control.start(folder, slots=2)
    try:
        yield Plane(folder, endpoints, Cli(folder.path))
    finally:
        control.stop(folder)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def job(plane: Plane, gate: Path) -> str:
    """One that has a checkpoint, and goes slowly until the gate opens."""
    made = plane.cli.submit("--workers", "2", "tiny.py", str(STEPS), "0.3", str(gate), cwd=JOBS)
    wait_for(lambda: committed(plane, made) >= 10, 150, lambda: plane.cli.explain(made) + tails(plane.folder))
    return made


def data(plane: Plane, job: str, name: str) -> list[dict[str, Any]]:
    return [e["data"] for e in plane.cli.events(job) if e["type"].endswith("." + name)]


def committed(plane: Plane, job: str) -> int:
    return max((int(e["step"]) for e in data(plane, job, "Committed")), default=0)


def recorded(plane: Plane, job: str) -> int:
    return max((int(e["step"]) for e in data(plane, job, "StepRecorded")), default=0)


def test_a_job_recovers_from_the_bucket(plane: Plane, job: str, gate: Path, tmp_path: Path) -> None:
    started = data(plane, job, "worker.Started")
    os.kill(next(int(e["pid"]) for e in started if int(e.get("rank", 0)) == 1), signal.SIGKILL)
    gate.touch()
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    assert [int(e["generation"]) for e in data(plane, job, "worker.Started")] == [1, 1, 2]
    plane.cli("checkpoints", "verify", job)
    plane.cli("checkpoints", "export", job, "--to", str(tmp_path / "exported"))
    assert list((tmp_path / "exported").glob("*.safetensors"))
    store = open_location("s3://distroml")
    try:
        kinds = {info.key.partition("/")[0] for info in store.list()}
    finally:
        store.close()
    assert {"bundles", "checkpoints"} <= kinds
    assert not (plane.folder.path / "objects").exists()


def test_a_job_trains_on_while_the_server_is_dead(plane: Plane, job: str, gate: Path, server: Running) -> None:
    server.kill()
    at = recorded(plane, job)
    wait_for(lambda: recorded(plane, job) >= at + 12, 60, lambda: plane.cli.explain(job))
    server.restart()
    gate.touch()
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    assert len(data(plane, job, "GenerationFormed")) == 1
    assert committed(plane, job) == STEPS
    plane.cli("checkpoints", "verify", job)


def test_the_secret_is_written_nowhere(plane: Plane) -> None:
    for path in plane.folder.path.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert SECRET_KEY.encode() not in path.read_bytes(), path


def test_doctor_looks_at_the_bucket(plane: Plane, tmp_path: Path) -> None:
    assert {"check": "objects", "verdict": "ok", "text": "s3://distroml", "advice": ""} in plane.cli.json("doctor")
    stranger = DataFolder(tmp_path / "stranger")
    stranger.prepare()
    (finding,) = [f for f in Cli(stranger.path).json("doctor", code=1) if f["check"] == "objects"]
    assert finding["verdict"] == "problem"
    assert "belongs to the deployment" in finding["text"]
