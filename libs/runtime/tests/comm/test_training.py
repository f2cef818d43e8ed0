"""What a training computes does not depend on who carries its collectives."""

import json
from pathlib import Path

import pytest

from libs.runtime.tests.comm.launching import free_ports, launch
from libs.runtime.tests.comm.training import PLANS, STEPS
from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


def test_losses_over_mpi_are_those_over_gloo(pool: Pool, tmp_path: Path) -> None:
    ended = launch("mpi", 2, ["-W", "ignore", "-m", "libs.runtime.tests.comm.training", str(tmp_path / "mpi")], 190.0)
    assert set(ended.codes) == {0}, ended.text[-6000:]
    mpi = json.loads((tmp_path / "mpi").read_text())
    gloo = pool.run("libs.runtime.tests.comm.pooled:train", 2, ports=free_ports(len(PLANS)))[0]
    assert mpi.keys() == gloo.keys() == set(PLANS)
    for plan in PLANS:
        assert len(mpi[plan]) == STEPS
        # Two ranks: a + b is b + a, so not even the last bit may differ.
        assert mpi[plan] == gloo[plan], plan
