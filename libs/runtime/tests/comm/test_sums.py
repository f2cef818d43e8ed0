"""Sums over real ranks: right, alike on all of them, and by what was measured to be fastest."""

from pathlib import Path

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

RANKS = "libs.runtime.tests.comm.sum_ranks"
BLOCKS, INTERLEAVED = ["a", "a", "b", "b"], ["a", "b", "a", "b"]
SIZES = [0, 1, 2, 3, 17, 1000, 70_001]


@pytest.mark.parametrize("hosts", [BLOCKS, INTERLEAVED, ["a", "a", "a", "b", "b", "b"], ["a", "a", "b", "b", "c", "c"]])
def test_both_ways_give_the_sum_with_the_same_bits_everywhere(pool: Pool, hosts: list[str]) -> None:
    answers = pool.run(f"{RANKS}:sums", len(hosts), hosts=hosts, sizes=SIZES, dtypes=["float32", "float64", "bfloat16"])
    assert len({answer["bits"] for answer in answers}) == 1, "ranks disagree"
    for answer in answers:
        assert sorted(answer["errors"]) == ["flat", "hierarchical"]
        # In units of rounding: each of the additions may be off by half of one.
        assert max(answer["errors"].values()) <= len(hosts), answer["errors"]


def test_groups_along_an_axis_each_have_their_own_sums(pool: Pool) -> None:
    answers = pool.run(f"{RANKS}:sums", 4, hosts=BLOCKS, sizes=[1000], dtypes=["float32"], axis=2)
    assert [answer["ranks"] for answer in answers] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [sorted(answer["errors"]) for answer in answers] == [["flat"]] * 4, "one node each: nothing to layer"
    assert answers[0]["bits"] == answers[1]["bits"] != answers[2]["bits"] == answers[3]["bits"]


def test_nodes_of_unequal_size_are_summed_flat_in_their_order(pool: Pool) -> None:
    answers = pool.run(f"{RANKS}:sums", 5, hosts=["a", "b", "a", "b", "a"], sizes=[1000], dtypes=["float32"])
    assert {tuple(answer["ring"]) for answer in answers} == {(0, 2, 4, 1, 3)}
    assert {tuple(answer["errors"]) for answer in answers} == {("flat",)}
    assert len({answer["bits"] for answer in answers}) == 1


def test_the_hierarchy_sends_less_between_nodes_than_the_ring(pool: Pool) -> None:
    answers = pool.run(f"{RANKS}:sums", 4, hosts=INTERLEAVED, sizes=[1], dtypes=["float32"])
    size = 1 << 20

    def between(way: str) -> int:
        return sum(answer["sent"][way].get("cluster", 0) for answer in answers) // 2

    assert between("flat") == 1.5 * size
    assert between("hierarchical") == size


def test_all_ranks_choose_alike_and_what_was_measured_serves_again(pool: Pool, tmp_path: Path) -> None:
    answers = pool.run(f"{RANKS}:choose_twice", 4, hosts=BLOCKS, cache=str(tmp_path))
    assert all(answer == answers[0] for answer in answers)
    first, again = answers[0]["told"]
    assert not first["reused"]
    assert again["reused"]
    assert again["spent_s"] == 0 < first["spent_s"]
    assert again["sizes"] == first["sizes"]
    assert len(first["sizes"]) >= 2
    assert answers[0]["sum"] == [4.0]


def test_one_node_needs_no_measurement(pool: Pool, tmp_path: Path) -> None:
    answers = pool.run(f"{RANKS}:choose_twice", 2, hosts=["a", "a"], cache=str(tmp_path))
    assert answers[0]["ways"] == ["flat"]
    assert not list(tmp_path.iterdir())


def test_the_thread_ends_with_its_owner(pool: Pool) -> None:
    for before, used, after in pool.run(f"{RANKS}:threads_left", 4, hosts=BLOCKS):
        assert used == before + 1
        assert after == before
