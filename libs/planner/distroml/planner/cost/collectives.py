"""Seconds of a collective over the levels that its group crosses.

A ring of n members sends (n-1)/n of the tensor over each link in n-1 steps (twice that for an all-reduce); a tree
all-reduce sends it twice in 2 log n steps. The slowest level sets the rate, every level adds its latency. Members
that share a unit of the level below bring their own links out of it, so that the rings of a group run side by side
(Thakur et al., "Optimization of Collective Communication Operations in MPICH", 2005; NCCL builds one ring per port).
"""

from __future__ import annotations

import math

from distroml.planner.topology import Collective, Route


def _rate(route: Route, collective: Collective) -> float:
    return min(hop.bytes_per_s(collective) for hop in route)


def members(route: Route) -> int:
    """How many a group has that takes `route`."""
    return math.prod(hop.fan for hop in route)


def _ring_latency(route: Route, collective: Collective) -> float:
    """Latencies of one way around the ring, from the first member to the last."""
    total, outer = 0.0, 1
    for hop in reversed(route):
        total += (hop.fan - 1) * outer * hop.level.rate(collective, hop.fan).latency_s
        outer *= hop.fan
    return total


def gather_s(route: Route, bytes_: float, *, count: int = 1, scatter: bool = False) -> float:
    """All-gathers, or reduce-scatters, of `bytes_` in all, in `count` calls. `bytes_` is the whole tensor's size."""
    return ring_s(route, bytes_, "reduce_scatter" if scatter else "all_gather", count=count)


def ring_s(route: Route, bytes_: float, collective: Collective, *, count: int = 1) -> float:
    """Once around the ring of members, `count` times: `bytes_` in all, with links as they are under `collective`."""
    if not route or not bytes_:
        return 0.0
    n = members(route)
    return count * _ring_latency(route, collective) + bytes_ * (n - 1) / n / _rate(route, collective)


def all_reduce_s(route: Route, bytes_: float, *, count: int = 1) -> float:
    """All-reduces of `bytes_` in all, in `count` calls: by ring or by tree, whichever is faster.

    What was measured by itself is taken as the ring that its figures were fitted to.
    """
    if not route or not bytes_:
        return 0.0
    n, rate = members(route), _rate(route, "all_reduce")
    ring = 2 * (count * _ring_latency(route, "all_reduce") + bytes_ * (n - 1) / n / rate)
    if any(hop.level.rates for hop in route):
        return ring
    depth_s = sum(math.ceil(math.log2(hop.fan)) * hop.level.latency_s for hop in route)
    tree = 2 * (count * depth_s + bytes_ / rate)
    return min(ring, tree)


def send_s(route: Route, bytes_: float) -> float:
    """One message from a member to the next."""
    if not route or not bytes_:
        return 0.0
    # Neighbours along the axis may stand on both sides of the outermost level that the group crosses.
    slowest = route[-1].level.rate("send", route[-1].fan)
    return slowest.latency_s + bytes_ / slowest.bytes_per_s


def hidden(route: Route, overlap: float) -> float:
    """The share of an exchange that computation can hide, of a device that could hide `overlap`."""
    return min(overlap, 1 - max((hop.level.busy for hop in route), default=0.0))


def exposed_s(exchange_s: float, window_s: float, overlap: float) -> float:
    """What remains of an exchange while computation of `window_s` runs, of which it may hide the share `overlap`."""
    return exchange_s - min(overlap * exchange_s, window_s)
