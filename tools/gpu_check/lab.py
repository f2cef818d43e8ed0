"""Where the checks are made: a control plane of its own in a folder, the command line against it, one clock for all."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).parent / "job"
# By what they are imported as, and as pip calls them. NiceGUI draws the dashboard, which nothing here looks at.
NEEDED = {
    "torch": "torch", "msgspec": "msgspec", "grpc": "grpcio", "grpc_status": "grpcio-status",
    "grpc_health": "grpcio-health-checking", "grpc_reflection": "grpcio-reflection",
    "google.rpc": "googleapis-common-protos",
    "prometheus_client": "prometheus-client", "opentelemetry.sdk": "opentelemetry-sdk", "psutil": "psutil",
    "pynvml": "nvidia-ml-py", "pathspec": "pathspec", "typer": "typer", "rich": "rich", "yaml": "pyyaml",
    "nicegui": "nicegui",
}  # fmt: skip


_RANKS_S = 60.0
# What an agent elsewhere has to know of a control plane.
_ENDPOINTS = """
import json, sys
from pathlib import Path
from distroml.cli.plane.datafolder import SERVICES, DataFolder
folder = DataFolder(Path(sys.argv[1]))
known = folder.endpoints()
print(json.dumps({**{name: known.services[name] for name in SERVICES}, "token_file": str(folder.token_file),
                  "deployment": folder.deployment(), "objects": (folder.path / "objects").as_uri()}))
"""


class Failed(Exception):
    """A check did not find what it should; the text says what it found."""


class Refused(Exception):
    """Nothing can be checked here; the text says what is missing and what to do."""


def missing() -> list[str]:
    """What of `NEEDED` this interpreter does not have, as pip calls it."""
    return [name for module, name in NEEDED.items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def source_roots() -> list[str]:
    """Where this tree's packages are, for an interpreter in which they are not installed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [str(ROOT), *(str(ROOT / root) for root in settings["tool"]["hatch"]["build"]["dev-mode-dirs"])]


@dataclass
class Lab:
    """One run of the checks.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal.
        folder: everything that is written.
        seconds: for all checks together.
    """

    device: str
    folder: Path
    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until all must be over; raises `Failed` where none are."""
        left = self.seconds - (time.monotonic() - self.began)
        if left <= 0:
            raise Failed(f"the {self.seconds:.0f} s for all checks were over before this one")
        return left

    def environment(self) -> dict[str, str]:
        """Of every process here. cuBLAS repeats its sums to the bit only with a workspace of a fixed size."""
        path = os.pathsep.join([*source_roots(), *filter(None, [os.environ.get("PYTHONPATH")])])
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DISTROML_")}
        own = {"DISTROML_DATA": str(self.folder / "plane"), "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "COLUMNS": "200"}
        return {**kept, "PYTHONPATH": path, **own}

    def python(self, *arguments: str, code: int | None = 0, environ: Mapping[str, str] | None = None) -> str:
        """What a Python says on stdout; raises `Failed` where it takes too long or ends otherwise than `code`."""
        try:
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT, env={**self.environment(), **(environ or {})}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=self.left_s, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Failed(f"`{' '.join(arguments)}` was not done when the time for all checks was over") from None
        if code is not None and done.returncode != code:
            raise Failed(
                f"`{' '.join(arguments)}` ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
            )
        return done.stdout

    def ranks(self, count: int, *arguments: str, environ: Mapping[str, str] | None = None) -> list[tuple[int, str]]:
        """Exit codes and output of `python arguments` as `count` ranks on the one device, each with `environ` added.

        NCCL takes each for a host of its own: it refuses two ranks on one GPU of one host.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        common = {
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        running = [
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                env={**self.environment(), **common, "RANK": str(rank), "LOCAL_RANK": str(rank),
                     "NCCL_HOSTID": f"rank-{rank}", **(environ or {})},
            )
            for rank in range(count)
        ]  # fmt: skip
        try:
            said = _heard(running, min(self.left_s, _RANKS_S))
        except subprocess.TimeoutExpired:
            for process in running:
                process.send_signal(signal.SIGABRT)  # it says where it is
            where = "\n".join(text[-2500:] for text in _heard(running, 20.0))
            raise Failed(f"{count} ranks of `{' '.join(arguments)}` were not done in time:\n{where}") from None
        finally:
            for process in running:
                process.kill()
                process.wait()
        return [(process.returncode, text) for process, text in zip(running, said, strict=True)]

    @contextmanager
    def another_node(self) -> Generator[None]:
        """Within it a second agent offers the same device: a job may have two workers on it."""
        folder, plane = self.folder / "node2", self.folder / "plane"
        folder.mkdir()
        endpoints = json.loads(self.python("-c", _ENDPOINTS, str(plane)))
        environ = {
            **self.environment(),
            "DISTROML_DATA": str(folder),
            **{f"DISTROML_{name.upper()}": value for name, value in endpoints.items()},
            **({} if self.device == "cuda" else {"DISTROML_AGENT_SLOTS": "1"}),
        }
        with (self.folder / "node2.log").open("w") as log:
            agent = subprocess.Popen(
                [sys.executable, "-m", "distroml.agent"], cwd=ROOT, env=environ, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self.until(lambda: len(self.asked("nodes")) == 2 or None, "the second agent's slot")
            yield
        finally:
            (folder / "node" / "down").touch()
            agent.terminate()
            try:
                agent.wait(30)
            finally:
                agent.kill()

    def distroml(self, *arguments: str, code: int | None = 0) -> str:
        """The command line against this control plane."""
        return self.python("-m", "distroml.cli.main", *arguments, code=code)

    def asked(self, *arguments: str) -> Any:
        """What the command line answers with `--json`."""
        return json.loads(self.distroml(*arguments, "--json"))

    def submit(self, name: str, *arguments: str, failures: int = 3, workers: int = 1) -> str:
        """Give the small training to workers; returns the job. What it writes is in `folder / name`."""
        command = [str(JOB / "train.py"), str(self.folder / name), self.device, *arguments]
        options = ("--workers", str(workers), "--max-failures", str(failures), "--name", name, "--bundle", str(JOB))
        told = self.distroml("submit", "--json", *options, *command)
        return str(json.loads(told)["id"])

    def ended(self, job: str) -> dict[str, Any]:
        """The job once it is over; one process waits for that, and takes nothing from the training."""
        self.distroml("job", "watch", job, code=None)
        shown: dict[str, Any] = self.asked("job", "show", job)
        return shown

    def until(self, found: Callable[[], Any], what: str, limit_s: float = 90.0) -> Any:
        """What `found` finds at last; raises `Failed` after `limit_s`."""
        deadline = time.monotonic() + min(limit_s, self.left_s)
        while (value := found()) is None:
            if time.monotonic() > deadline:
                raise Failed(f"waited {limit_s:.0f} s for {what}")
            time.sleep(1.0)
        return value

    def told(self, name: str) -> list[dict[str, Any]]:
        """What the small training said of its steps."""
        file = self.folder / name / "steps.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def result(self, name: str) -> dict[str, Any]:
        """What it came to."""
        return json.loads((self.folder / name / "result.json").read_text())

    def events(self, job: str, kind: str) -> list[dict[str, Any]]:
        """Those of the job's events whose type ends so."""
        lines = self.distroml("events", job, "--json").splitlines()
        return [event for event in map(json.loads, lines) if event["type"].endswith(kind)]


def _heard(running: Sequence[subprocess.Popen[str]], timeout_s: float) -> list[str]:
    """All that each says to its end, read from all at once: one whose pipe is full stands still, and others with it.

    Raises:
        subprocess.TimeoutExpired: one has not ended by then; it can be heard once more.
    """

    def hear(process: subprocess.Popen[str]) -> str:
        return process.communicate(timeout=timeout_s)[0]

    with ThreadPoolExecutor(len(running)) as readers:
        return list(readers.map(hear, running))


def succeeded(lab: Lab, job: str, shown: dict[str, Any]) -> None:
    """Raise `Failed` with the job's own words where it did not."""
    if shown["state"] != "JOB_STATE_SUCCEEDED":
        said = lab.distroml("job", "logs", job, code=None)[-3000:]
        raise Failed(f"{job} ended as {shown['state']}: {shown.get('message')}\n{said}")
