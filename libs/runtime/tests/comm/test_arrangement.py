"""Arrangements and choices: what follows from hosts and from timings."""

import pytest

from distroml.runtime.comm import Kind
from distroml.runtime.comm.algorithms import Arrangement, Choice, Timed

KIB, MIB = 1 << 10, 1 << 20


def arranged(text: str) -> Arrangement:
    """Ranks 0, 1, … on hosts of one letter each."""
    return Arrangement.of(range(len(text)), list(text))


@pytest.mark.parametrize(
    ("hosts", "ring", "interleaved", "layered"),
    [
        ("aabb", (0, 1, 2, 3), False, True),
        ("abab", (0, 2, 1, 3), True, True),
        ("abba", (0, 3, 1, 2), False, True),
        ("aaaa", (0, 1, 2, 3), False, False),
        ("ab", (0, 1), False, False),
        ("abcd", (0, 1, 2, 3), False, False),
        ("aabbb", (0, 1, 2, 3, 4), False, False),
        ("abaab", (0, 2, 3, 1, 4), True, False),
        ("a", (0,), False, False),
    ],
)
def test_order_and_layers_follow_from_hosts(
    hosts: str, ring: tuple[int, ...], interleaved: bool, layered: bool
) -> None:
    found = arranged(hosts)
    assert found.ring == ring
    assert found.interleaved == interleaved
    assert found.layered == layered


def test_ranks_with_the_same_place_in_each_node_are_peers() -> None:
    assert arranged("ababab").nodes == ((0, 2, 4), (1, 3, 5))
    assert arranged("ababab").across == ((0, 1), (2, 3), (4, 5))


def test_an_axis_may_hold_some_ranks_of_the_world_only() -> None:
    found = Arrangement.of((1, 3, 5, 7), list("aaaabbbb"))
    assert found.nodes == ((1, 3), (5, 7))
    assert [found.level(rank) for rank in found.ranks] == ["cluster", "node", "cluster", "node"]


@pytest.mark.parametrize(
    ("hosts", "kind", "sent"),
    [
        # A ring in the axis's own order sends all of a rank's bytes over one link.
        ("aabb", "sum", [{"cluster": 1200}, {"node": 1200}, {"cluster": 1200}, {"node": 1200}]),
        ("abab", "gather", [{"cluster": 2400}] * 4),
        # To each other directly: one of three is on the own node.
        ("aabb", "scatter", [{"node": 200, "cluster": 400}] * 4),
        ("aaaa", "scatter", [{"node": 600}] * 4),
        ("abcd", "scatter", [{"cluster": 600}] * 4),
        ("aab", "scatter", [{"node": 266, "cluster": 267}, {"node": 266, "cluster": 267}, {"cluster": 533}]),
    ],
)
def test_bytes_are_counted_on_the_links_they_take(hosts: str, kind: Kind, sent: list[dict[str, int]]) -> None:
    found = arranged(hosts)
    assert [found.sent(kind, 800, rank) for rank in found.ranks] == sent


def test_axes_of_one_pattern_are_summed_in_one_order() -> None:
    world = list("aabbccdd")
    first, second, other = (Arrangement.of(ranks, world) for ranks in ((0, 2, 4, 6), (1, 3, 5, 7), (0, 1, 4, 6)))
    assert first.pattern == second.pattern == (0, 1, 2, 3)
    assert other.pattern == (0, 0, 1, 2)


def timed(*rows: tuple[int, float, float]) -> Choice:
    return Choice(tuple(Timed(size, {"flat": flat, "hierarchical": other}) for size, flat, other in rows))


def test_the_faster_one_is_picked_for_each_size() -> None:
    choice = timed((64 * KIB, 0.001, 0.003), (512 * KIB, 0.008, 0.007), (4 * MIB, 0.064, 0.040))
    assert choice.pick(0) == "flat"
    assert choice.pick(64 * KIB) == "flat"
    assert choice.pick(4 * MIB) == "hierarchical"
    assert choice.pick(100 * MIB) == "hierarchical"
    assert str(choice) == "flat to 64 KiB, hierarchical from 512 KiB"


def test_flat_stays_where_little_is_gained() -> None:
    choice = timed((64 * KIB, 0.001, 0.00096), (4 * MIB, 0.064, 0.062))
    assert {choice.pick(size) for size in (1, 64 * KIB, MIB, 4 * MIB, 100 * MIB)} == {"flat"}
    assert str(choice) == "flat for all sizes"


def test_nothing_measured_means_flat() -> None:
    assert Choice().pick(MIB) == "flat"
    assert str(Choice()) == "flat"


def test_times_lie_on_straight_lines_between_and_beyond() -> None:
    choice = timed((MIB, 1.0, 2.0), (3 * MIB, 3.0, 2.0), (5 * MIB, 5.0, 1.0))
    assert choice.seconds("flat", 2 * MIB) == pytest.approx(2.0)
    assert choice.seconds("flat", 7 * MIB) == pytest.approx(7.0)
    assert choice.seconds("flat", 10) == 1.0
    assert choice.seconds("hierarchical", 4 * MIB) == pytest.approx(1.5)
    assert timed((MIB, 1.0, 2.0)).seconds("hierarchical", 4 * MIB) == 8.0


def test_a_large_sum_that_noise_made_fast_does_not_make_larger_ones_free() -> None:
    choice = timed((64 * KIB, 0.004, 0.006), (512 * KIB, 0.004, 0.0045))
    assert choice.seconds("hierarchical", 70 * MIB) == 0.0045
    assert choice.pick(70 * MIB) == "flat"
