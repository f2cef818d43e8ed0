"""Every back end carries what the runtime uses, alike; NCCL where there are GPUs, of one rank for want of more."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from libs.runtime.tests.comm.launching import free_ports, launch
from libs.runtime.tests.comm.rank import cases_for
from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

GPUS = torch.cuda.device_count()
RANKS = {"gloo": 4, "mpi": 4, **({"nccl": next(n for n in (4, 2, 1) if n <= GPUS)} if GPUS else {})}
CASES = [(backend, name) for backend, ranks in RANKS.items() for name in cases_for(backend, ranks)]


@pytest.fixture(scope="module")
def told(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, str]]]:
    """What each rank says of each case. All cases of a back end are one run: starting ranks is what takes time."""
    known: dict[str, list[dict[str, str]]] = {}

    def ask(backend: str) -> list[dict[str, str]]:
        if backend not in known and backend == "gloo":
            known[backend] = pool.run("libs.runtime.tests.comm.pooled:conform", RANKS[backend], port=free_ports(1)[0])
        elif backend not in known:
            out: Path = tmp_path_factory.mktemp(backend)
            ranks = RANKS[backend]
            ended = launch(backend, ranks, ["-m", "libs.runtime.tests.comm.rank", backend, str(out)], timeout_s=280.0)
            files = [out / f"{rank}.json" for rank in range(ranks)]
            assert all(file.exists() for file in files), ended.text[-6000:]
            assert set(ended.codes) == {0}, ended.text[-6000:]
            known[backend] = [json.loads(file.read_text()) for file in files]
        return known[backend]

    return ask


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_it_does(backend: str, name: str, told: Callable[[str], list[dict[str, str]]]) -> None:
    for rank, said in enumerate(told(backend)):
        assert name in said, f"an earlier case failed on rank {rank}"
        assert not said[name], f"rank {rank}: {said[name]}"
