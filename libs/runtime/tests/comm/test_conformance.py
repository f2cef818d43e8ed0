"""Every back end carries what the runtime uses, alike; NCCL where there are GPUs enough."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from libs.runtime.tests.comm.cases import CASES, RANKS
from libs.runtime.tests.comm.launching import launch

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

BACKENDS = ["gloo", "mpi", *(["nccl"] if torch.cuda.device_count() >= RANKS else [])]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[dict[str, str]]]:
    """What each rank says of each case. All cases of a back end are one run: starting ranks is what takes time."""
    known: dict[str, list[dict[str, str]]] = {}

    def ask(backend: str) -> list[dict[str, str]]:
        if backend not in known:
            out: Path = tmp_path_factory.mktemp(backend)
            ended = launch(backend, RANKS, ["-m", "libs.runtime.tests.comm.rank", backend, str(out)], timeout_s=280.0)
            files = [out / f"{rank}.json" for rank in range(RANKS)]
            assert all(file.exists() for file in files), ended.text[-6000:]
            assert set(ended.codes) == {0}, ended.text[-6000:]
            known[backend] = [json.loads(file.read_text()) for file in files]
        return known[backend]

    return ask


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_does(backend: str, name: str, told: Callable[[str], list[dict[str, str]]]) -> None:
    for rank, said in enumerate(told(backend)):
        assert name in said, f"an earlier case failed on rank {rank}"
        assert not said[name], f"rank {rank}: {said[name]}"
