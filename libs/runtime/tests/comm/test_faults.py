"""A rank that is absent, cut off or dead is an error of communication within the time limit, and never a hang."""

import json
from pathlib import Path

import pytest

from libs.runtime.tests.comm.faults import LIMIT_S
from libs.runtime.tests.comm.launching import free_ports, launch
from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]


def told_of(backend: str, fault: str, out: Path) -> tuple[dict[str, str], str, list[int]]:
    ended = launch(backend, 2, ["-m", "libs.runtime.tests.comm.rank", backend, str(out), fault], timeout_s=150.0)
    file = out / "0.json"
    return json.loads(file.read_text()) if file.exists() else {}, ended.text, ended.codes


@pytest.mark.parametrize("fault", ["absent", "absent_future", "cut"])
def test_a_wait_over_mpi_ends_with_an_error_that_the_runtime_knows(fault: str, tmp_path: Path) -> None:
    said, text, _ = told_of("mpi", fault, tmp_path)
    assert said, text[-4000:]
    assert said["communication"] == "True", said
    # The words tell that it was the limit, or the cut, that ended the wait, and not the other rank's end.
    wanted = "this rank left the world" if fault == "cut" else f"did not end within its {LIMIT_S:.0f} s"
    assert wanted in said["text"]
    assert "all_reduce of float32[3] over 2 ranks" in said["text"] or fault == "cut"


def test_a_wait_for_a_rank_whose_program_ended_is_given_up_at_once(tmp_path: Path) -> None:
    said, text, codes = told_of("mpi", "left", tmp_path)
    assert said.get("communication") == "True", (said, text[-4000:])
    assert "waits for rank 1, whose program has ended" in said["text"]
    assert codes != [0]


def test_a_wait_over_gloo_ends_with_an_error_that_the_runtime_knows(tmp_path: Path) -> None:
    said, text, _ = told_of("gloo", "cut", tmp_path)
    assert said.get("communication") == "True", (said, text[-4000:])


def test_a_message_over_gloo_that_is_cut_half_way_holds_up_nobody(pool: Pool) -> None:
    """Neither who waits for it or for its like, nor who lets go of the group: Gloo itself would, for ten minutes."""
    said = pool.run("libs.runtime.tests.comm.pooled:cut_within_a_message", 2, 60, port=free_ports(1)[0])
    assert all("were cut, and what they were in the middle of never ends" in one for one in said), said


def test_when_a_rank_dies_mpirun_ends_all_and_says_which(tmp_path: Path) -> None:
    _, text, codes = told_of("mpi", "killed", tmp_path)
    assert codes != [0]
    assert "rank 1" in text, text[-4000:]
    assert "signal 9" in text, text[-4000:]
