"""Seconds, and bytes by level of links, of the rounds in which replicas sum gradients, as the runtime makes them.

On processors a plain sum goes by one ring through all ranks or, where replicas lie on several hosts and that is faster,
by a hierarchy: scattered within each host, summed between hosts share by share, gathered within. On GPUs it is the back
end's own. Codes that everybody gathers go around a ring; codes for the owners of parts go to each of them directly, so
that a rank sends over its own link what a ring would send once for the whole host.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from distroml.planner.codes import Message
from distroml.planner.cost.collectives import all_reduce_s, members, ring_s
from distroml.planner.topology import Route

# As in the runtime's `comm.algorithms.choice`: another way than the ring must gain as much.
_WORTH_IT = 0.05


class Moved(NamedTuple):
    """What rounds take.

    Attributes:
        seconds: from the first message to the last.
        sent_bytes: that a rank sends, by name of the level; the mean of all ranks, since few of a ring leave a host.
    """

    seconds: float
    sent_bytes: Mapping[str, float]


NOTHING = Moved(0.0, {})


def moved(route: Route, message: Message, count: int, *, on_cpu: bool) -> Moved:
    """`count` rounds of `message` each, between the ranks of a group that takes `route`."""
    if not route or not message.bytes:
        return NOTHING
    bytes_ = float(message.bytes) * count
    match message.how:
        case "sum":
            return summed(route, bytes_, count, on_cpu=on_cpu)
        case "gather":
            whole = bytes_ * members(route)
            # Message by message over Gloo: what a ring costs there was measured by single messages.
            seconds = ring_s(route, whole, "send" if on_cpu else "all_gather", count=count)
            return Moved(seconds, _around(route, bytes_ * (members(route) - 1)))
        case "scatter":
            return _to_each(route, bytes_, count)


def summed(route: Route, bytes_: float, count: int, *, on_cpu: bool) -> Moved:
    """Plain sums of `bytes_` in all, in `count` calls."""
    if not route or not bytes_:
        return NOTHING
    ring = _all_reduced(route, bytes_, count)
    if not on_cpu or len(route) == 1:
        return ring
    layered = _layered(route, bytes_, count)
    return layered if layered.seconds < (1 - _WORTH_IT) * ring.seconds else ring


def _all_reduced(route: Route, bytes_: float, count: int) -> Moved:
    n = members(route)
    return Moved(all_reduce_s(route, bytes_, count=count), _around(route, 2 * bytes_ * (n - 1) / n))


def _layered(route: Route, bytes_: float, count: int) -> Moved:
    inside = route[:1]
    n = members(inside)
    # Each rank of a host meets its peers of the others by itself, on its own share of the links.
    across = tuple(replace(hop, below=hop.below // n) for hop in route[1:])
    parts = (_to_each(inside, bytes_, count), _all_reduced(across, bytes_ / n, count), _to_each(inside, bytes_, count))
    return together(parts)


def together(parts: Iterable[Moved]) -> Moved:
    """One after the other."""
    parts = tuple(parts)
    sent: defaultdict[str, float] = defaultdict(float)
    for part in parts:
        for level, size in part.sent_bytes.items():
            sent[level] += size
    return Moved(sum(part.seconds for part in parts), dict(sent))


def _to_each(route: Route, bytes_: float, count: int) -> Moved:
    """Every rank sends each other one an equal part of `bytes_`, all at once."""
    each = bytes_ / members(route)
    sent = {hop.level.name: each * hop.below * (hop.fan - 1) for hop in route}
    slowest = max(sent[hop.level.name] / hop.level.rate("send", hop.fan).bytes_per_s for hop in route)
    return Moved(count * route[-1].level.rate("send", route[-1].fan).latency_s + slowest, sent)


def _around(route: Route, bytes_: float) -> dict[str, float]:
    """`bytes_` of each rank of a ring, by the levels on which its links lie."""
    ranks, units = members(route), 1
    found: dict[str, float] = {}
    for hop in reversed(route):
        # The outermost level closes the ring; within each unit below it one link fewer leads on.
        links = hop.fan if units == 1 else (hop.fan - 1) * units
        found[hop.level.name] = bytes_ * links / ranks
        units *= hop.fan
    return found
