"""Topologies: which levels a group crosses, what it gets of their links, and what a probe says of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.planner import Device, Level, Plan, PlanRefused, Sample, Topology, fit_level, fit_levels, gpu, gpu_names
from distroml.planner.cost.collectives import all_reduce_s, exposed_s, gather_s, hidden, send_s

NODE = Level(name="node", extent=8, latency_s=1e-6, bytes_per_s=200e9)
CLUSTER = Level(name="cluster", extent=16, latency_s=1e-5, bytes_per_s=20e9)
MACHINES = Topology(device=gpu("A100"), levels=(NODE, CLUSTER))


def fans(size, stride):
    return [(hop.level.name, hop.fan, hop.below) for hop in MACHINES.route(size, stride)]


@pytest.mark.parametrize(
    ("size", "stride", "crosses"),
    [
        (1, 1, []),
        (8, 1, [("node", 8, 1)]),
        (4, 2, [("node", 4, 1)]),
        (16, 8, [("cluster", 16, 1)]),
        (16, 1, [("node", 8, 1), ("cluster", 2, 8)]),
        (32, 4, [("node", 2, 1), ("cluster", 16, 2)]),
        (4, 32, [("cluster", 4, 1)]),
        # Askew: a group of 6 lies on two nodes, and its worst place has two members on one of them.
        (6, 1, [("node", 2, 1), ("cluster", 3, 2)]),
    ],
)
def test_a_group_crosses_the_levels_it_must(size, stride, crosses):
    assert fans(size, stride) == crosses


def test_an_axis_takes_the_stride_of_the_axes_inside_it():
    plan = Plan(dp_replicate=16, tp=8)
    assert [hop.level.name for hop in MACHINES.axis_route(plan, "tp")] == ["node"]
    assert [hop.level.name for hop in MACHINES.axis_route(plan, "dp_replicate")] == ["cluster"]
    turned = Plan(dp_replicate=16, tp=8, order=("pp", "tp", "dp_shard", "dp_replicate"))
    assert [(hop.fan, hop.below) for hop in MACHINES.axis_route(turned, "dp_replicate")] == [(8, 1), (2, 8)]
    assert [hop.level.name for hop in MACHINES.axis_route(turned, "tp")] == ["cluster"]


def test_members_on_one_node_bring_their_links():
    one, many = MACHINES.route(16, 8), MACHINES.route(128, 1)
    # 8 rings side by side: 160 GB/s out of a node; the node's own links then are nearly as slow.
    assert gather_s(many, 1e9) < gather_s(one, 1e9) / 7


def test_small_messages_take_the_tree_and_large_ones_the_ring():
    wide = MACHINES.route(16, 8)
    assert all_reduce_s(wide, 8) == pytest.approx(2 * 4 * 1e-5, rel=1e-3)
    assert all_reduce_s(wide, 1e10) == pytest.approx(2 * 1e10 * 15 / 16 / 20e9, rel=1e-3)


def test_nothing_is_sent_alone():
    assert all_reduce_s((), 1e9) == gather_s((), 1e9) == send_s((), 1e9) == 0


def test_overlap_hides_no_more_than_the_window_and_its_share():
    assert exposed_s(10.0, 100.0, 0.9) == pytest.approx(1.0)
    assert exposed_s(10.0, 3.0, 0.9) == pytest.approx(7.0)


@given(
    latency_us=st.floats(0, 500),
    gb_per_s=st.floats(0.01, 500),
    ranks=st.integers(2, 16),
    sizes=st.lists(st.integers(1, 1 << 28), min_size=3, max_size=6, unique=True),
)
def test_a_fit_finds_what_made_the_samples(latency_us, gb_per_s, ranks, sizes):
    level = Level(name="node", extent=ranks, latency_s=latency_us * 1e-6, bytes_per_s=gb_per_s * 1e9)
    route = Topology(device=gpu("A100"), levels=(level,)).route(ranks, 1)
    samples = [Sample("all_gather", size, ranks, gather_s(route, size)) for size in [*sizes, 1 << 30, 4]]
    samples += [Sample("send", size, 2, send_s(route, size)) for size in sizes]
    fitted = fit_level("node", ranks, samples)
    for sample in samples:
        again = gather_s if sample.collective == "all_gather" else send_s
        there = Topology(device=gpu("A100"), levels=(fitted,)).route(sample.ranks if again is gather_s else ranks, 1)
        assert again(there, sample.bytes) == pytest.approx(sample.seconds, rel=1e-3)


def test_a_fit_never_gives_a_negative_figure():
    samples = [Sample("all_reduce", 1000, 2, 3e-3), Sample("all_reduce", 1_000_000, 2, 1e-3)]
    level = fit_level("node", 2, samples)
    assert level.latency_s >= 0
    assert level.bytes_per_s > 0


def test_each_level_is_fitted_by_its_own_samples():
    fast = [Sample("all_reduce", size, 2, 1e-5 + size / 1e10) for size in (1 << 10, 1 << 24)]
    slow = [Sample("all_reduce", size, 2, 1e-3 + size / 1e8) for size in (1 << 10, 1 << 24)]
    machines = fit_levels(gpu("A100"), [("node", 2), ("cluster", 2)], {"node": fast, "cluster": slow})
    assert machines.world_size == 4
    assert machines.levels[0].bytes_per_s > 50 * machines.levels[1].bytes_per_s


def test_collectives_that_were_measured_have_figures_of_their_own():
    sizes = (1 << 10, 1 << 24)
    samples = [Sample("all_reduce", size, 4, 6 * (1e-4 + size / 4 / 1e9)) for size in sizes]
    samples += [Sample("reduce_scatter", size, 4, 3 * (5e-4 + size / 4 / 1e8)) for size in sizes]
    samples += [Sample("all_gather", 1 << 20, 4, 1.0)]
    level = fit_level("node", 4, samples)
    route = Topology(device=gpu("A100"), levels=(level,)).route(4, 1)
    for size in (1 << 12, 1 << 20, 1 << 26):
        assert all_reduce_s(route, size) == pytest.approx(6 * (1e-4 + size / 4 / 1e9))
        assert gather_s(route, size, scatter=True) == pytest.approx(3 * (5e-4 + size / 4 / 1e8))
    # One size tells nothing of it by itself: it follows the level's joint figures.
    assert level.rate("all_gather", 4)[2:] == (level.latency_s, level.bytes_per_s)


def test_groups_of_each_size_have_figures_of_their_own():
    sizes = (1 << 10, 1 << 24)
    pairs = [Sample("all_reduce", size, 2, 2 * (1e-4 + size / 2 / 1e9)) for size in sizes]
    fours = [Sample("all_reduce", size, 4, 6 * (9e-4 + size / 4 / 1e8)) for size in sizes]
    machines = Topology(device=gpu("A100"), levels=(fit_level("node", 8, pairs + fours),))
    assert all_reduce_s(machines.route(2, 1), 1 << 20) == pytest.approx(2 * (1e-4 + (1 << 19) / 1e9))
    assert all_reduce_s(machines.route(4, 1), 1 << 20) == pytest.approx(6 * (9e-4 + (1 << 18) / 1e8))
    # Between two sizes the larger, beyond them the largest.
    for ranks in (3, 8):
        assert machines.levels[0].rate("all_reduce", ranks).ranks == 4


def test_slower_links_slow_what_was_measured_too():
    sizes = (1 << 10, 1 << 24)
    level = fit_level("node", 2, [Sample("all_reduce", size, 2, 1e-4 + size / 1e9) for size in sizes])
    machines = Topology(device=gpu("A100"), levels=(level,))
    whole, half = (all_reduce_s(one.route(2, 1), 1e9) for one in (machines, machines.scaled(0.5)))
    assert half == pytest.approx(2 * whole, rel=1e-3)


@pytest.mark.parametrize(("busy_s", "share"), [(0.0, 0.9), (0.25, 0.75), (1.0, 0.0), (7.0, 0.0)])
def test_what_keeps_the_processor_busy_is_not_hidden(busy_s, share):
    samples = [Sample("all_reduce", size, 2, 1.0, busy_s) for size in (1 << 10, 1 << 20)]
    # Only sums are hidden: what waits for something else anyway says nothing.
    samples += [Sample("send", size, 2, 1.0, 0.1) for size in (1 << 10, 1 << 20)]
    route = Topology(device=gpu("A100"), levels=(fit_level("node", 2, samples),)).route(2, 1)
    assert hidden(route, 0.9) == pytest.approx(share)
    assert hidden((), 0.9) == 0.9


@pytest.mark.parametrize(
    ("samples", "why"),
    [
        ([], "probe a small and a large"),
        ([Sample("send", 8, 2, 1e-6)] * 3, "probe a small and a large"),
        ([Sample("send", 8, 2, 0.0)], "a time above 0"),
    ],
)
def test_samples_that_say_nothing_are_refused(samples, why):
    with pytest.raises(PlanRefused, match=why):
        fit_level("node", 2, samples)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100", "H100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("A100-SXM4-40GB", "A100-40GB"),
        ("a100", "A100-80GB"),
        ("V100", "V100-32GB"),
    ],
)
def test_a_gpu_is_known_by_any_of_its_names(name, found):
    assert gpu(name).name == found


def test_an_unknown_gpu_is_refused_with_the_nearest():
    with pytest.raises(PlanRefused, match=r"did you mean H100.*described in numbers"):
        gpu("H10O")


def test_every_gpu_is_whole():
    for name in gpu_names():
        device = gpu(name)
        assert device.peak("bf16") >= device.peak("fp32") > 0
        assert 0 < device.usable_bytes < device.memory_bytes


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"memory_bytes": 0}, "memory_bytes must be a number above 0"),
        ({"flops": {}}, "needs flops"),
        ({"overlap": 1.5}, "overlap must lie between"),
    ],
)
def test_a_device_that_cannot_be_is_refused(values, why):
    whole = {"name": "x", "flops": {"fp32": 1e12}, "memory_bytes": 1e9, "memory_bytes_per_s": 1e10}
    with pytest.raises(PlanRefused, match=why):
        Device(**(whole | values))
