"""What each part can be imported without: a training image has no server, a service image no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVER = ("grpc", "google", "opentelemetry", "prometheus_client", "nicegui")
HEAVY = ("torch", "numpy")

# module: packages that must not be needed to import it.
WITHOUT = {
    "distroml.events": (*SERVER, *HEAVY, "msgspec"),
    "distroml.manifest": (*SERVER, *HEAVY),
    "distroml.workerlink": (*SERVER, *HEAVY),
    "distroml.objectstore.filesystem": (*SERVER, *HEAVY),
    "distroml.objectstore.location": (*SERVER, *HEAVY, "minio", "urllib3"),
    "distroml.statestore.sqlite": (*SERVER, *HEAVY),
    "distroml.eventstore.sqlite": (*SERVER, *HEAVY),
    "distroml.observability": (*SERVER, *HEAVY),
    "distroml.rpc": ("minio", "opentelemetry", "prometheus_client", "grpc_health", "grpc_reflection", *HEAVY),
    # What opens the stores of embedded deployments has no client of a server.
    "distroml.rpc.stores": ("minio", "nats", "urllib3", *HEAVY),
    "distroml.relay.settings": ("minio", "nats", "urllib3", *HEAVY),
    "distroml.cli.plane.supervisor": ("minio", "nats", "urllib3", *HEAVY),
    "distroml.agent.holder": (*SERVER, *HEAVY, "msgspec", "psutil", "asyncio"),
    "distroml.cli.main": (*HEAVY, "opentelemetry", "prometheus_client", "nicegui"),
    "distroml.runtime": SERVER,
}

IMPORT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Absent())
import {module}
"""


@pytest.mark.parametrize("module", WITHOUT)
def test_a_part_needs_no_more_than_it_should(module: str) -> None:
    program = IMPORT.format(absent=WITHOUT[module], module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_finder_really_hides_packages() -> None:
    program = IMPORT.format(absent=("msgspec",), module="distroml.manifest")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "msgspec is not installed here" in done.stderr
