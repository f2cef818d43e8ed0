"""A job over two nodes: each with an agent, a node folder and slots of its own, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distroml.agent.adapters.processes import read_identity
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import SERVICES, DataFolder
from tests.e2e.conftest import Cli, Plane, tails, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
JOBS = Path(__file__).parent / "jobs"
STEPS = 60
NODE_TTL_S = 6


@dataclass
class OtherNode:
    """A node with one slot whose agent the tests start and kill."""

    plane: Plane
    data: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        folder = self.plane.folder
        self.data.mkdir(exist_ok=True)
        environ = {
            **os.environ,
            "DISTROML_DATA": str(self.data),
            "DISTROML_TOKEN_FILE": str(folder.token_file),
            "DISTROML_DEPLOYMENT": folder.deployment(),
            "DISTROML_AGENT_SLOTS": "1",
            "DISTROML_OBJECTS": (folder.path / "objects").as_uri(),
            **{f"DISTROML_{name.upper()}": self.plane.endpoints.services[name] for name in SERVICES},
        }
        with (folder.logs / "other-agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "distroml.agent"],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def node(self) -> str:
        """Its id; empty before the agent has taken one."""
        try:
            return str(json.loads((self.data / "node" / "identity.json").read_bytes())["node"])
        except OSError:
            return ""

    def kill(self) -> None:
        """SIGKILL of all that runs on the node, as when its power fails."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        for file in self.data.glob("node/workers/*/*/identity.json"):
            if (identity := read_identity(file.parent)) is None:
                continue
            for pid, lives in (
                (identity.holder_pid, identity.holder_lives),
                (identity.worker_pid, identity.worker_lives),
            ):
                if lives:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            (self.data / "node" / "down").touch()
            self.process.terminate()
            try:
                self.process.wait(30)
            finally:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane whose own node has one slot, and which soon gives a silent node up."""
    folder = DataFolder(tmp_path_factory.mktemp("plane"))
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("DISTROML_SCHEDULER_NODE_TTL_S", str(NODE_TTL_S))
        environ.setenv("DISTROML_RENDEZVOUS_MEMBER_TTL_S", str(NODE_TTL_S))
        endpoints = control.start(folder, slots=1)
    try:
        yield Plane(folder, endpoints, Cli(folder.path))
    finally:
        control.stop(folder)


@pytest.fixture(scope="module")
def other(plane: Plane) -> Iterator[OtherNode]:
    node = OtherNode(plane, plane.folder.path.with_name("other-node"))
    node.start()
    try:
        wait_for(lambda: len(plane.cli.json("nodes")) == 2, 60, lambda: tails(plane.folder))
        yield node
    finally:
        node.stop()


@dataclass
class Running:
    """A job over both nodes, slow until its gate opens."""

    plane: Plane
    other: OtherNode
    gate: Path
    job: str

    def data(self, name: str) -> list[dict[str, Any]]:
        return [e["data"] for e in self.plane.cli.events(self.job) if e["type"].endswith("." + name)]

    def reach(self, step: int, generation: int) -> None:
        """Wait for a committed checkpoint of `generation` at `step` or later."""

        def there() -> bool:
            return any(int(e["step"]) >= step and int(e["generation"]) >= generation for e in self.data("Committed"))

        wait_for(there, 150, lambda: self.plane.cli.explain(self.job) + self.words())

    def worker_of(self, node: str) -> int:
        return next(int(e["pid"]) for e in reversed(self.data("worker.Started")) if f".{node}." in str(e["worker"]))

    def finish(self) -> str:
        """The fingerprint of its last step."""
        self.gate.touch()
        assert self.plane.cli.wait_state(self.job, "SUCCEEDED", "FAILED") == "SUCCEEDED", self.words()
        last = self.data("StepRecorded")[-1]
        assert int(last["step"]) == STEPS
        return str(last["fingerprint"])

    def words(self) -> str:
        log = (self.plane.folder.logs / "other-agent.log").read_text("utf-8", "replace")[-4000:]
        return f"{tails(self.plane.folder)}\n== the other agent\n{log}"

    def worlds(self) -> list[tuple[int, int]]:
        """World size and number of nodes of each generation."""
        formed = [e["generation"] for e in self.data("GenerationFormed")]
        return [(int(g["world_size"]), len({m["node"] for m in g["members"]})) for g in formed]


@pytest.fixture
def running(plane: Plane, other: OtherNode, tmp_path: Path) -> Running:
    gate = tmp_path / "gate"
    job = plane.cli.submit("--workers", "2", "tiny.py", str(STEPS), "0.3", str(gate), cwd=JOBS)
    made = Running(plane, other, gate, job)
    made.reach(10, 1)
    assert made.worlds() == [(2, 2)], "one worker on each node"
    return made


@pytest.fixture(scope="module")
def undisturbed(plane: Plane, other: OtherNode) -> str:
    job = plane.cli.submit("--workers", "2", "tiny.py", str(STEPS), cwd=JOBS)
    return Running(plane, other, plane.folder.path / "no-gate", job).finish()


@pytest.mark.parametrize("where", ["own", "other"])
def test_a_killed_worker_of_either_node_is_replaced_there(running: Running, undisturbed: str, where: str) -> None:
    nodes = {str(node["id"]) for node in running.plane.cli.json("nodes")}
    (node,) = {running.other.node} if where == "other" else nodes - {running.other.node}
    os.kill(running.worker_of(node), signal.SIGKILL)
    assert running.finish() == undisturbed
    assert running.worlds() == [(2, 2), (2, 2)]
    started = running.data("worker.Started")
    assert [int(e["generation"]) for e in started] == [1, 1, 2], "the survivor stays in its process"
    assert f".{node}." in started[-1]["worker"]


def test_the_job_goes_on_when_a_node_that_died_is_back_at_once(running: Running, undisturbed: str) -> None:
    running.other.kill()
    running.other.start()
    running.reach(20, 2)
    assert running.finish() == undisturbed
    assert running.worlds()[-1] == (2, 2)
    assert {int(e["attempt"]) for e in running.data("AttemptStarted")} == {1}, "no attempt is spent on it"


def test_a_node_that_stays_away_is_lost_and_the_job_waits_for_it(running: Running, undisturbed: str) -> None:
    running.other.kill()
    running.plane.cli.wait_state(running.job, "QUEUED", timeout=60)
    assert "slot" in running.plane.cli("job", "explain", running.job).stdout
    running.other.start()
    assert running.finish() == undisturbed
    assert running.worlds()[-1] == (2, 2)
    assert "replay verified" in running.plane.cli("replay", "--verify").stdout
