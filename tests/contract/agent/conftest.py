"""Agents as the services see them: one in this process, one as a process as users start it, over a scripted plane."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest

from distroml.agent.agent import end_leftovers
from services.agent.tests.conftest import Running
from services.agent.tests.plane import Plane

TOKEN = "token"
STOP_S = 30.0


class Agent(Protocol):
    """An agent on a data folder; started again it is another agent of the same node."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class InProcess:
    """The agent's own parts, put together in this process."""

    def __init__(self, data: Path, plane: Plane) -> None:
        self._data, self._plane = data, plane

    async def start(self) -> None:
        self._running = Running(self._data, self._plane, {"slots": 2}, None)
        await self._running.start()

    async def stop(self) -> None:
        await self._running.stop()


class AsProcess:
    """`python -m distroml.agent`."""

    def __init__(self, data: Path, plane: Plane) -> None:
        self._data = data
        (data / "format.json").write_text(json.dumps({"format": 1, "deployment": "dep-1"}))
        (data / "token").write_text(TOKEN)
        (data / "token").chmod(0o600)
        services = ("SCHEDULER", "RENDEZVOUS", "CHECKPOINT", "TELEMETRY")
        self._environ = {
            **os.environ,
            **{f"DISTROML_{name}": plane.endpoint for name in services},
            "DISTROML_DATA": str(data),
            "DISTROML_SLOTS": "2",
            "DISTROML_AGENT_WARM": "0",
            "DISTROML_DRAIN_S": "1",
        }

    async def start(self) -> None:
        with (self._data / "log").open("ab") as log:
            command = [sys.executable, "-m", "distroml.agent"]
            self._process = subprocess.Popen(command, env=self._environ, stdout=log, stderr=log)

    async def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        log = (self._data / "log").read_text()
        assert code == 0, log
        assert "Traceback" not in log, log


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    found = Plane()
    await found.start()
    yield found
    await found.stop()


@pytest.fixture(params=[InProcess, AsProcess], ids=["in-process", "process"])
async def agent(request: pytest.FixtureRequest, tmp_path: Path, plane: Plane) -> AsyncIterator[Agent]:
    found: Agent = request.param(tmp_path, plane)
    await found.start()
    yield found
    await found.stop()
    await end_leftovers(tmp_path / "node" / "workers", keep=set(), grace_s=0)
