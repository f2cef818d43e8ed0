"""Whatever dies, the job and the log survive: workers, services, the whole control plane."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distroml.cli.plane import control
from distroml.cli.plane.datafolder import SERVICES, DataFolder
from tests.e2e.conftest import Cli, Plane, tails, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
STEPS = 60
JOBS = Path(__file__).parent / "jobs"


@dataclass
class Slow:
    """A job that is slow until the gate opens, so that what a test does to it happens while it runs."""

    plane: Plane
    gate: Path

    def submit(self, workers: str, steps: int, *options: str) -> str:
        arguments = ("tiny.py", str(steps), "0.3", str(self.gate))
        return self.plane.cli.submit("--workers", workers, *options, *arguments, cwd=JOBS)

    def open(self) -> None:
        self.gate.touch()


@pytest.fixture
def slow(plane: Plane, tmp_path: Path) -> Slow:
    return Slow(plane, tmp_path / "gate")


def data(plane: Plane, job: str, name: str) -> list[dict[str, Any]]:
    return [e["data"] for e in plane.cli.events(job) if e["type"].endswith("." + name)]


def step_of(plane: Plane, job: str) -> int:
    return max((int(e["step"]) for e in data(plane, job, "Committed")), default=0)


def pid_of_rank(plane: Plane, job: str, rank: int) -> int:
    return next(int(e["pid"]) for e in reversed(data(plane, job, "worker.Started")) if int(e.get("rank", 0)) == rank)


def end_fingerprint(plane: Plane, job: str) -> str:
    steps = data(plane, job, "StepRecorded")
    assert int(steps[-1]["step"]) == STEPS
    return str(steps[-1]["fingerprint"])


@pytest.fixture(scope="module")
def undisturbed(plane: Plane) -> str:
    """The fingerprint of the parameters after 60 undisturbed steps on two workers."""
    job = plane.cli.submit("--workers", "2", "tiny.py", str(STEPS), cwd=JOBS)
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    return end_fingerprint(plane, job)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_replaced_and_the_result_is_the_same_to_the_bit(
    plane: Plane, slow: Slow, undisturbed: str, rank: int
) -> None:
    job = slow.submit("2", STEPS)
    wait_for(lambda: step_of(plane, job) >= 20, 150, lambda: plane.cli.explain(job))
    os.kill(pid_of_rank(plane, job, rank), signal.SIGKILL)
    slow.open()
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    started = data(plane, job, "worker.Started")
    assert [int(e["generation"]) for e in started] == [1, 1, 2], "the survivor stays in its process"
    assert end_fingerprint(plane, job) == undisturbed


def test_a_stopped_worker_is_found_killed_and_replaced(plane: Plane, slow: Slow, undisturbed: str) -> None:
    job = slow.submit("2", STEPS)
    wait_for(lambda: step_of(plane, job) >= 10, 150, lambda: plane.cli.explain(job))
    os.kill(pid_of_rank(plane, job, 1), signal.SIGSTOP)
    slow.open()
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    assert {e["category"] for e in data(plane, job, "GenerationBroken")} == {"FAILURE_CATEGORY_HANG"}
    assert end_fingerprint(plane, job) == undisturbed


def test_every_service_dies_by_kill_9_and_training_does_not_notice(plane: Plane, slow: Slow) -> None:
    job = slow.submit("2", 150)
    wait_for(lambda: step_of(plane, job) >= 10, 150, lambda: plane.cli.explain(job))
    for service in SERVICES:
        before = plane.pid(service)
        os.kill(before, signal.SIGKILL)
        wait_for(lambda b=before, s=service: (now := _pid(plane, s)) and now != b, 30)
    slow.open()
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    assert len(data(plane, job, "GenerationFormed")) == 1, "no service's death restarts training"
    assert "replay verified" in plane.cli("replay", "--verify").stdout


def _pid(plane: Plane, service: str) -> int | None:
    try:
        return plane.pid(service)
    except AssertionError:
        return None


def test_all_services_stopped_for_long_and_training_does_not_notice(plane: Plane, slow: Slow) -> None:
    job = slow.submit("2", 150)
    wait_for(lambda: step_of(plane, job) >= 10, 150, lambda: plane.cli.explain(job))
    before = {service: plane.pid(service) for service in SERVICES}
    for pid in before.values():
        os.kill(pid, signal.SIGSTOP)
    # The supervisor notices the silence and puts new processes in their place.
    wait_for(lambda: all((now := _pid(plane, s)) and now != pid for s, pid in before.items()), 60)
    slow.open()
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    assert len(data(plane, job, "GenerationFormed")) == 1
    assert "replay verified" in plane.cli("replay", "--verify").stdout


def test_pause_frees_the_slots_and_resume_goes_on_from_the_checkpoint(
    plane: Plane, slow: Slow, undisturbed: str
) -> None:
    job = slow.submit("2", STEPS)
    wait_for(lambda: step_of(plane, job) >= 10, 150, lambda: plane.cli.explain(job))
    plane.cli("job", "pause", job)
    plane.cli.wait_state(job, "PAUSED")
    assert not any(slot["job"] for node in plane.cli.json("nodes") for slot in node["slots"])
    saved = step_of(plane, job)
    plane.cli("job", "resume", job)
    slow.open()
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    first = [int(e["step"]) for e in data(plane, job, "StepRecorded") if int(e["generation"]) == 2]
    assert min(first) == saved + 1, "no step is trained twice after a pause"
    assert end_fingerprint(plane, job) == undisturbed


def test_resize_while_running(plane: Plane, slow: Slow) -> None:
    job = slow.submit("2", 100)
    wait_for(lambda: step_of(plane, job) >= 10, 150, lambda: plane.cli.explain(job))
    plane.cli("job", "resize", job, "3")
    slow.open()
    assert plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(plane.folder)
    sizes = [int(e["generation"]["world_size"]) for e in data(plane, job, "GenerationFormed")]
    assert sizes[0] == 2
    assert sizes[-1] == 3


@pytest.fixture
def own_plane(tmp_path: Path) -> Iterator[Plane]:
    folder = DataFolder(tmp_path / "data")
    endpoints = control.start(folder, slots=2)
    try:
        yield Plane(folder, endpoints, Cli(folder.path))
    finally:
        control.stop(folder)


def test_the_whole_control_plane_dies_and_the_job_goes_on(own_plane: Plane, tmp_path: Path) -> None:
    slow = Slow(own_plane, tmp_path / "gate")
    job = slow.submit("2", 150)
    wait_for(lambda: step_of(own_plane, job) >= 10, 150, lambda: own_plane.cli.explain(job))
    workers = [pid_of_rank(own_plane, job, rank) for rank in (0, 1)]
    victims = [own_plane.endpoints.supervisor, *(own_plane.pid(service) for service in SERVICES)]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    time.sleep(2)
    assert all(Path(f"/proc/{pid}").exists() for pid in workers), "workers outlive the control plane"
    control.start(own_plane.folder, slots=2)
    slow.open()
    assert own_plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(own_plane.folder)
    assert len(data(own_plane, job, "GenerationFormed")) == 1
    assert "replay verified" in own_plane.cli("replay", "--verify").stdout


def test_the_supervisor_alone_dies_and_up_goes_on(own_plane: Plane, tmp_path: Path) -> None:
    slow = Slow(own_plane, tmp_path / "gate")
    job = slow.submit("2", 150)
    wait_for(lambda: step_of(own_plane, job) >= 10, 150, lambda: own_plane.cli.explain(job))
    before = {service: own_plane.pid(service) for service in SERVICES}
    os.kill(own_plane.endpoints.supervisor, signal.SIGKILL)
    # At once: some of its services are still on their way out.
    assert "control plane started" in own_plane.cli("up", "--slots", "2").stdout
    again = control.connect_or_fail(own_plane.folder)
    assert again.services == own_plane.endpoints.services, "whoever knew the services finds them again"
    assert not before.items() & {service: own_plane.pid(service) for service in SERVICES}.items()
    slow.open()
    assert own_plane.cli.wait_state(job, "SUCCEEDED", "FAILED") == "SUCCEEDED", tails(own_plane.folder)
    assert len(data(own_plane, job, "GenerationFormed")) == 1
    assert "replay verified" in own_plane.cli("replay", "--verify").stdout
    own_plane.cli("down")
    _nothing_is_left(own_plane, set())


def test_down_ends_what_a_dead_supervisor_left_and_the_job_comes_back(own_plane: Plane, tmp_path: Path) -> None:
    slow = Slow(own_plane, tmp_path / "gate")
    job = slow.submit("2", 4000)
    wait_for(lambda: step_of(own_plane, job) >= 10, 150, lambda: own_plane.cli.explain(job))
    workers = {pid_of_rank(own_plane, job, rank) for rank in (0, 1)}
    services = {own_plane.pid(service) for service in SERVICES}
    os.kill(own_plane.endpoints.supervisor, signal.SIGKILL)
    # They are told to end, and no half of a control plane is left.
    wait_for(lambda: not any(map(_lives, services)), 60, lambda: tails(own_plane.folder))
    assert all(map(_lives, workers)), "training goes on without"
    assert "distroml up" in own_plane.cli("jobs", code=3).stderr
    found = {one["check"]: one for one in own_plane.cli.json("doctor", code=None)}
    assert found["control plane"]["text"] == "not running"
    # Two workers and the host of their store.
    assert found["workers"]["text"].startswith("3 processes of jobs go on without a control plane")
    assert own_plane.cli("down").stdout == "control plane stopped\n"
    _nothing_is_left(own_plane, workers)
    assert "no control plane runs" in own_plane.cli("down").stdout
    assert "workers" not in {one["check"] for one in own_plane.cli.json("doctor", code=None)}
    own_plane.cli("up", "--slots", "2")
    saved = step_of(own_plane, job)
    wait_for(lambda: step_of(own_plane, job) > saved, 90, lambda: own_plane.cli.explain(job))
    assert int(own_plane.cli.json("job", "show", job).get("failures", 0)) == 0


@pytest.mark.parametrize("agent", ["alive", "dead"])
def test_down_leaves_no_process_behind(own_plane: Plane, tmp_path: Path, agent: str) -> None:
    slow = Slow(own_plane, tmp_path / "gate")
    job = slow.submit("2", 4000)
    wait_for(lambda: step_of(own_plane, job) >= 10, 150, lambda: own_plane.cli.explain(job))
    workers = {pid_of_rank(own_plane, job, rank) for rank in (0, 1)}
    if agent == "alive":
        own_plane.cli("down")
    else:
        # The supervisor learns of the agent's death and of its own end at once: it starts no other agent.
        agent_pid = own_plane.pid("agent")
        os.kill(own_plane.endpoints.supervisor, signal.SIGSTOP)
        os.kill(agent_pid, signal.SIGKILL)
        os.kill(own_plane.endpoints.supervisor, signal.SIGTERM)
        os.kill(own_plane.endpoints.supervisor, signal.SIGCONT)
        wait_for(lambda: not own_plane.folder.is_locked(), 60, lambda: tails(own_plane.folder))
    _nothing_is_left(own_plane, workers)


def _nothing_is_left(plane: Plane, workers: set[int]) -> None:
    marker = str(plane.folder.path).encode()
    processes = [p for p in Path("/proc").iterdir() if p.name.isdigit() and int(p.name) != os.getpid()]
    left = [p for p in processes if int(p.name) in workers or marker in _environ(p)]
    assert not left, [(p / "cmdline").read_bytes() for p in left]


def _lives(pid: int) -> bool:
    """Whether it runs: nobody may be there to wait for one that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    except OSError:
        return b""
