"""A real control plane for end-to-end tests, and the command line as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import client
from distroml.cli.errors import Unreachable
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import SERVICES, DataFolder, Endpoints
from distroml.cli.replay_commands import event_dict

REPOSITORY = Path(__file__).parents[2]
_POLL_S = (0.1, 1.0)


@dataclass
class Cli:
    """`distroml` against one data folder."""

    data: Path

    def start(self, *arguments: str, cwd: Path | None = None, **kwargs: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "distroml.cli.main", *arguments],
            env={**os.environ, "DISTROML_DATA": str(self.data), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            cwd=cwd or REPOSITORY,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **kwargs,
        )

    def __call__(
        self, *arguments: str, code: int | None = 0, timeout: float = 120, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, cwd=cwd)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"distroml {' '.join(arguments)} took over {timeout} s:\n{out}\n{err}") from None
        assert code is None or process.returncode == code, f"exit {process.returncode}:\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def json(self, *arguments: str, code: int | None = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code).stdout)

    def events(self, job: str) -> list[dict[str, Any]]:
        """The job's events; asked in this process, since tests ask often."""

        async def collect(plane: client.Plane) -> list[dict[str, Any]]:
            pages = plane.jobs.ListEvents(jobs_pb2.ListEventsRequest(job=job))
            return [event_dict(event) async for page in pages for event in page.events]

        return client.call(self.data, collect)

    def submit(self, *arguments: str, cwd: Path | None = None) -> str:
        return str(json.loads(self("submit", "--json", *arguments, cwd=cwd).stdout)["id"])

    def state(self, job: str) -> str:
        async def ask(plane: client.Plane) -> jobs_pb2.Job:
            return await plane.jobs.GetJob(jobs_pb2.GetJobRequest(job=job))

        try:
            state = client.call(self.data, ask).state
        except Unreachable:
            return "UNREACHABLE"
        return jobs_pb2.JobState.Name(state).removeprefix("JOB_STATE_")

    def wait_state(self, job: str, *states: str, timeout: float = 180) -> str:
        return str(wait_for(lambda: (s := self.state(job)) in states and s, timeout, lambda: self.explain(job)))

    def explain(self, job: str) -> str:
        shown = self("job", "explain", job, code=None).stdout
        return shown + self("job", "logs", job, code=None).stdout[-3000:]


@dataclass
class Plane:
    """A running control plane."""

    folder: DataFolder
    endpoints: Endpoints
    cli: Cli

    def pid(self, service: str) -> int:
        """The service's process, found by the address that only it was given."""
        wanted = f"DISTROML_LISTEN={self.endpoints.services[service]}\0".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes()
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if wanted in environment + b"\0" and f"distroml.{service}\0".encode() in command:
                    return int(entry.name)
        raise AssertionError(f"{service} is not running")


def wait_for(check: Callable[[], Any], timeout: float = 60, describe: Callable[[], str] = lambda: "") -> Any:
    """Poll until `check` gives something true; fails with `describe()` at the deadline.

    Most of the time goes to whoever is waited for: a check that takes long is made less often.
    """
    deadline = time.monotonic() + timeout
    while (began := time.monotonic()) < deadline:
        if value := check():
            return value
        time.sleep(min(max(_POLL_S[0], 3 * (time.monotonic() - began)), _POLL_S[1]))
    raise AssertionError(f"not within {timeout} s: {describe()}")


def tails(folder: DataFolder) -> str:
    """The ends of all service logs."""
    return "\n".join(
        f"== {name}\n{(folder.logs / f'{name}.log').read_text('utf-8', 'replace')[-2000:]}"
        for name in SERVICES
        if (folder.logs / f"{name}.log").exists()
    )


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane with four slots, shared by the tests of a file."""
    folder = DataFolder(tmp_path_factory.mktemp("plane"))
    endpoints = control.start(folder, slots=4)
    try:
        yield Plane(folder, endpoints, Cli(folder.path))
    finally:
        control.stop(folder)
