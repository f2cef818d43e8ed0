"""Rounds between replicas by levels of links: what goes over which, how long it takes, and by which way."""

import pytest

from distroml.planner import Level, Topology
from distroml.planner.codes import Message
from distroml.planner.cost.moves import moved, summed
from distroml.planner.topology import Rate
from libs.planner.tests.models import device, machines

MIB = 1 << 20


def apart(nodes=2, per_node=4, inner=1e9, outer=1e8, latency=0.0):
    return Topology(
        device=device(),
        levels=(
            Level(name="node", extent=per_node, latency_s=latency, bytes_per_s=inner),
            Level(name="cluster", extent=nodes, latency_s=latency, bytes_per_s=outer),
        ),
    )


@pytest.mark.parametrize("how", ["sum", "gather", "scatter"])
@pytest.mark.parametrize(("nodes", "per_node"), [(1, 4), (4, 1), (2, 4), (3, 2)])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_levels_have_together_what_a_rank_sends(how, nodes, per_node, on_cpu):
    ranks = nodes * per_node
    message = Message(how, ranks * 4096)
    found = moved(apart(nodes, per_node).route(ranks, 1), message, 3, on_cpu=on_cpu)
    assert sum(found.sent_bytes.values()) == pytest.approx(3 * message.sent_bytes(ranks))


def test_a_hierarchy_spares_the_links_between_hosts_where_there_are_processors_only():
    route = apart(inner=1e10, outer=1e8).route(8, 1)
    ring, layered = (summed(route, 8.0 * MIB, 1, on_cpu=on_cpu) for on_cpu in (False, True))
    assert layered.seconds < 0.65 * ring.seconds
    # Of a node's four ranks each sends its own quarter to the other node; in a ring one sends all but an eighth, twice.
    assert layered.sent_bytes["cluster"] == pytest.approx(8 * MIB / 4)
    assert ring.sent_bytes["cluster"] == pytest.approx(8 * MIB * 2 * 7 / 8 / 4)


def test_a_ring_stays_where_a_hierarchy_gains_nothing():
    route = apart(inner=1e8, outer=1e8).route(8, 1)
    assert summed(route, 8.0 * MIB, 1, on_cpu=True) == summed(route, 8.0 * MIB, 1, on_cpu=False)
    flat = apart(nodes=1).route(4, 1)
    assert set(summed(flat, 8.0 * MIB, 1, on_cpu=True).sent_bytes) == {"node"}


def test_codes_for_owners_leave_a_host_once_for_each_rank():
    """Of 8 MiB every rank of four sends half to the other node, all over its own quarter of the node's link."""
    found = moved(apart(outer=1e8).route(8, 1), Message("scatter", 8 * MIB), 1, on_cpu=False)
    assert found.sent_bytes == pytest.approx({"node": 3 * MIB, "cluster": 4 * MIB})
    assert found.seconds == pytest.approx(4 * MIB / 1e8)


def test_codes_around_a_ring_are_priced_by_single_messages_where_those_were_measured():
    rates = (Rate("all_gather", 4, 1.0, 1e6), Rate("send", 4, 1e-3, 1e8))
    level = Level(name="node", extent=4, latency_s=1.0, bytes_per_s=1e6, rates=rates)
    route = Topology(device=device(), levels=(level,)).route(4, 1)
    by_hand = moved(route, Message("gather", MIB), 2, on_cpu=True)
    assert by_hand.seconds == pytest.approx(2 * 3 * (1e-3 + MIB / 1e8))
    assert moved(route, Message("gather", MIB), 2, on_cpu=False).seconds == pytest.approx(2 * 3 * (1.0 + MIB / 1e6))


def test_nothing_costs_nothing():
    assert moved((), Message("sum", 8), 1, on_cpu=True).seconds == 0
    assert moved(machines().route(8, 1), Message("gather", 0), 1, on_cpu=True).seconds == 0
