"""The demo on every server of the stack, and beside it another deployment on the same servers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distroml.cli.main import app
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder, Profile
from distroml.cli.plane.targets import SHARED
from tests.e2e.conftest import Cli, Plane
from tests.servers import Servers

JOBS = Path(__file__).parents[1] / "jobs"
GRAFANA = "http://grafana.test:3000"


@dataclass
class OnStack(Plane):
    """A control plane on the servers."""

    def told(self, *words: str) -> str:
        """What the command line says, in this process: a start for each question would take a second."""
        done = CliRunner().invoke(app, [*words, "--data", str(self.folder.path)])
        assert done.exit_code == 0, done.output or done.exception
        return done.stdout

    def ask(self, *words: str) -> Any:
        return json.loads(self.told(*words, "--json"))


@dataclass
class Demo(OnStack):
    """The demo as it was played, with its control plane left running."""

    job: str
    began_s: float


@pytest.fixture(scope="package", autouse=True)
def shell(servers: Servers) -> Iterator[None]:
    """The environment of a shell that has read the file of `make stack`, and has little patience."""
    with pytest.MonkeyPatch.context() as environ:
        for name, value in servers.told().items():
            environ.setenv(name, value)
        environ.setenv("DISTROML_RELAY_SEAL_S", "0.5")
        environ.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        environ.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=tests")
        environ.setenv("DISTROML_GRAFANA_URL", GRAFANA)
        yield


@pytest.fixture(scope="package")
def plane(shell: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnStack]:
    """The other deployment, on which faults are provoked. No Prometheus hears of it."""
    folder = DataFolder(tmp_path_factory.mktemp("plane"))
    with pytest.MonkeyPatch.context() as environ:
        environ.delenv(SHARED)
        environ.setenv("DISTROML_RETIRE_AFTER_S", "1")
        environ.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        # Less than by default: an outage of seconds is then too long for the buffer.
        environ.setenv("DISTROML_AGENT_LOG_BYTES_PER_S", "100000")
        environ.setenv("DISTROML_AGENT_LOG_BUFFER_BYTES", str(4 << 20))
        # Other tests that run beside this one are no training to stand back for.
        environ.setenv("DISTROML_AGENT_LOG_NICE", "0")
        endpoints = control.start(folder, slots=2, profile=Profile.STACK)
    try:
        yield OnStack(folder, endpoints, Cli(folder.path))
    finally:
        control.stop(folder)


@pytest.fixture(scope="package")
def demo(plane: OnStack, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo, killed worker and recovery included, from a shell that stands where `make stack` was called."""
    folder = DataFolder(tmp_path_factory.mktemp("demo"))
    cli, began_s = Cli(folder.path), time.time()
    words = ("demo", "--profile", "stack", "--steps", "40", "--keep-running", "--data", str(folder.path))
    try:
        with pytest.MonkeyPatch.context() as environ:
            for name in servers.told():
                environ.delenv(name)
            cli(*words, timeout=300, cwd=servers.home)
        report, endpoints = json.loads((folder.path / "report.json").read_text()), folder.endpoints()
        assert report["ok"], report["checks"]
        assert endpoints is not None
        yield Demo(folder, endpoints, cli, report["job"], began_s)
    finally:
        control.stop(folder)
