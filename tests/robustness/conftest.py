"""One stack of servers for all tests of faults; for each file a control plane on it, and a job that trains on."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack

import pytest

from deploy.stack import running
from deploy.stack.elasticsearch import Elasticsearch
from deploy.stack.etcd import Etcd
from deploy.stack.jaeger import Jaeger
from deploy.stack.minio import Minio
from deploy.stack.nats import Nats
from deploy.stack.postgres import Postgres
from deploy.stack.prometheus import Prometheus, told_where
from tests.e2e.conftest import Plane
from tests.robustness.record import Record, open_record
from tests.robustness.stack import Stack, Training, control_plane, disk

# It looks at its disk, as everywhere but on a developer's machine, and as often as it can.
WATCHED = {
    "cluster.routing.allocation.disk.threshold_enabled": "true",
    "cluster.info.update.interval": "10s",
    "monitor.fs.health.refresh_interval": "1s",
}
SERVERS = (Etcd(), Nats(), Minio(), Postgres(), Elasticsearch(options=WATCHED), Jaeger(), Prometheus())
SETTINGS = {
    "DISTROML_RELAY_SEAL_S": "0.5",
    "DISTROML_RELAY_KEEP_BYTES": str(32 << 20),
    # In the end history is compared with all of the log.
    "DISTROML_TELEMETRY_EVENTS": "1000000",
    "DISTROML_AGENT_LOG_NICE": "0",
    "OTEL_BSP_SCHEDULE_DELAY": "500",
    "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
}
_RECORD = pytest.StashKey[Record]()


def pytest_configure(config: pytest.Config) -> None:
    """What becomes of these tests is kept where the environment asks for it."""
    config.stash[_RECORD] = open_record(os.environ)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    why = call.excinfo.exconly() if call.excinfo is not None else ""
    item.config.stash[_RECORD].tested(item.name, report.when or "", report.outcome, why)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    record = config.stash[_RECORD]
    if record.path is not None:
        terminalreporter.section("faults and what came of them")
        for line in record.lines():
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config) -> Record:
    """What this run does to whom."""
    return pytestconfig.stash[_RECORD]


@pytest.fixture(scope="package")
def stack(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The servers, and an environment that names them."""
    with ExitStack() as begun, pytest.MonkeyPatch.context() as environ:
        # Prometheus itself looks into the default data folder, which is another one: it is told by the plane.
        environ.setenv("DISTROML_DATA", str(tmp_path_factory.mktemp("nothing")))
        for name, value in SETTINGS.items():
            environ.setenv(name, value)
        record.run["servers"] = {server.name: server.version for server in SERVERS}
        stack = Stack({}, {})
        for server in SERVERS:
            folder = tmp_path_factory.mktemp(server.name)
            stack.disks[server.name] = begun.enter_context(disk(folder / "data"))
            stack.servers[server.name] = one = begun.enter_context(running(server, folder))
            for name, value in server.settings(one.ports).items():
                environ.setenv(name, value)
        for name, value in told_where(stack.servers["prometheus"].folder).items():
            environ.setenv(name, value)
        yield stack


@pytest.fixture(scope="module")
def settings() -> Mapping[str, str]:
    """What else a file's control plane is told."""
    return {}


@pytest.fixture(scope="module")
def stacked(stack: Stack, settings: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A control plane on the servers, with two slots."""
    with pytest.MonkeyPatch.context() as environ:
        for name, value in settings.items():
            environ.setenv(name, value)
        with control_plane(tmp_path_factory.mktemp("plane")) as plane:
            yield plane


@pytest.fixture(scope="module")
def training(stacked: Plane, record: Record, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """The job, and the clerk who gives it orders."""
    made = Training(stacked, tmp_path_factory.mktemp("job"), record=record)
    try:
        made.start()
        yield made
    finally:
        made.end_clerk()
