"""What a training computes does not depend on who carries its collectives."""

import json
import socket
from pathlib import Path

import pytest

from libs.runtime.tests.comm.launching import launch
from libs.runtime.tests.comm.training import PLANS, STEPS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def trained(backend: str, out: Path) -> dict[str, list[float]]:
    free = [socket.create_server(("127.0.0.1", 0)) for _ in PLANS]
    ports = ",".join(str(server.getsockname()[1]) for server in free)
    for server in free:
        server.close()
    argv = ["-W", "ignore", "-m", "libs.runtime.tests.comm.training", str(out), *([ports] if backend == "gloo" else [])]
    ended = launch(backend, 2, argv, timeout_s=190.0)
    assert set(ended.codes) == {0}, ended.text[-6000:]
    return json.loads(out.read_text())


def test_losses_over_mpi_are_those_over_gloo(tmp_path: Path) -> None:
    mpi, gloo = trained("mpi", tmp_path / "mpi.json"), trained("gloo", tmp_path / "gloo.json")
    assert mpi.keys() == gloo.keys() == set(PLANS)
    for plan in PLANS:
        assert len(mpi[plan]) == STEPS
        # Two ranks: a + b is b + a, so not even the last bit may differ.
        assert mpi[plan] == gloo[plan], plan
