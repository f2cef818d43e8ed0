"""What a training computes, and what its ranks exchange, does not depend on who carries its collectives."""

import json

import pytest

from libs.runtime.tests.comm.launching import free_ports, launch
from libs.runtime.tests.comm.reducer_cases import REDUCERS
from libs.runtime.tests.comm.training import STEPS, TRAININGS, Told
from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def mpi(tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    """What each rank says."""
    out = tmp_path_factory.mktemp("mpi")
    ended = launch("mpi", 2, ["-W", "ignore", "-m", "libs.runtime.tests.comm.training", str(out)], 280.0)
    assert set(ended.codes) == {0}, ended.text[-6000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def gloo(pool: Pool) -> list[Told]:
    """The same over Gloo."""
    return pool.run("libs.runtime.tests.comm.pooled:train", 2, ports=free_ports(len(TRAININGS) + 1))


@pytest.mark.parametrize("name", TRAININGS)
def test_losses_over_mpi_are_those_over_gloo(name: str, mpi: list[Told], gloo: list[Told]) -> None:
    losses = mpi[0]["losses"][name]
    assert len(losses) == STEPS
    # Two ranks: a + b is b + a, so not even the last bit may differ.
    assert losses == gloo[0]["losses"][name]
    # What codes lose is seen, and stays small.
    if name.endswith("int8"):
        whole = mpi[0]["losses"][name.partition(",")[0]]
        assert losses != whole
        assert losses == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("backend", ["gloo", "mpi"])
@pytest.mark.parametrize("name", REDUCERS.cases_of(2))
def test_it_does(backend: str, name: str, request: pytest.FixtureRequest) -> None:
    told: list[Told] = request.getfixturevalue(backend)
    for rank, said in enumerate(told):
        assert name in said["wrong"], f"an earlier case failed on rank {rank}"
        assert not said["wrong"][name], f"rank {rank}: {said['wrong'][name]}"
