"""The sum along an axis by whichever algorithm is fastest for its size, measured on the live ranks and remembered."""

from __future__ import annotations

import hashlib
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import msgspec
import torch
import torch.distributed as dist

from distroml.runtime.caching import write_down
from distroml.runtime.comm.algorithms.allreduce import AllReduce, Flat, Hierarchical
from distroml.runtime.comm.algorithms.arrangement import Arrangement, host_name
from distroml.runtime.comm.algorithms.choice import Choice, Timed
from distroml.runtime.elastic import Collectives, Pending, World, communication

log = logging.getLogger("distroml.runtime.comm")

_SIZES = (64 << 10, 512 << 10, 4 << 20)
_REPEATS = 5
_KEPT_S = 24 * 3600.0
# Another one where sums are made or timed in another way: what was kept then says something else.
_METHOD = 1


class Chosen:
    """`AllReduce` by the fastest algorithm for each size.

    Attributes:
        arrangement: of the axis's ranks on nodes.
        choice: and what it rests on.
    """

    def __init__(self, arrangement: Arrangement, ways: Mapping[str, AllReduce], choice: Choice) -> None:
        self.arrangement = arrangement
        self.choice = choice
        self.ways = dict(ways)

    @property
    def name(self) -> str:
        """See `AllReduce`."""
        return str(self.choice)

    def start(self, tensor: torch.Tensor) -> Pending:
        """See `AllReduce`."""
        return self._way(tensor.nbytes).start(tensor)

    def sum(self, tensor: torch.Tensor) -> None:
        """See `AllReduce`."""
        self._way(tensor.nbytes).sum(tensor)

    def sent_bytes(self, payload_bytes: int) -> Mapping[str, int]:
        """See `AllReduce`."""
        return self._way(payload_bytes).sent_bytes(payload_bytes)

    def _way(self, size_bytes: int) -> AllReduce:
        return self.ways[self.choice.pick(size_bytes)]


def all_reduce_along(
    world: World, group: dist.ProcessGroup, *, cache: Path | None = None, budget_s: float = 2.0
) -> Chosen:
    """Sums over the ranks of `group`. Collective over `world`, and equal on all of it: the choice included.

    A hierarchy is only tried where each such group of the world lies on several nodes with as many ranks on each; on
    a single node nothing is measured. Where the group's own order would lead a ring to and fro between nodes, the flat
    algorithm gets a group in another order. Groups whose ranks lie on nodes in different patterns are all summed in
    their own order: what two of them hold alike, such as tied parameters of two stages, must come out alike.

    Args:
        world: of the default process group.
        group: this rank's, along one axis of the mesh; every rank of the world has one.
        cache: a folder for what was measured, kept for a day by hosts and groups; None: nothing kept.
        budget_s: about how long measuring may take; where links are slow the largest size is left out.

    Raises:
        PeerLost: another rank is gone.
    """
    collectives = Collectives(world)
    mine = tuple(dist.get_process_group_ranks(group))
    gathered = collectives.gather((mine, host_name()))
    hosts = [host for _, host in gathered]
    arranged = [Arrangement.of(ranks, hosts) for ranks in sorted({ranks for ranks, _ in gathered})]
    own = next(one for one in arranged if world.rank in one.ranks)
    # NCCL finds its rings and trees by itself, whatever the order, and a hierarchy of its own.
    here = world.device.type == "cpu" and len({one.pattern for one in arranged}) == 1
    ring, order = group, own.ranks
    if here and own.interleaved:
        ring, order = _one_of(world, [one.ring for one in arranged]), own.ring
    ways: dict[str, AllReduce] = {"flat": Flat(ring, own.level(world.rank, order))}
    if not here or not own.layered:
        return Chosen(own, ways, Choice())
    inside = _one_of(world, [node for one in arranged for node in one.nodes])
    across = _one_of(world, [peers for one in arranged for peers in one.across])
    ways["hierarchical"] = Hierarchical(own, inside, across)
    path = cache / f"sums-{_key(arranged, hosts)}.json" if cache is not None else None
    choice = collectives.gather(_read(path) if path is not None and world.is_main else None)[0]
    if choice is None:
        choice = _measure(collectives, ways, budget_s)
        if path is not None and world.is_main:
            _write(path, choice)
    if world.is_main:
        log.info("sums over %d ranks on %d nodes: %s", len(own.ranks), len(own.nodes), choice)
    return Chosen(own, ways, choice)


def _one_of(world: World, groups: Sequence[tuple[int, ...]]) -> dist.ProcessGroup:
    """This rank's among `groups`, of which each rank is in one. Every rank makes all of them, in the same order."""
    found: dist.ProcessGroup | None = None
    with communication():
        for ranks in groups:
            made = dist.new_group(list(ranks), sort_ranks=False)
            if world.rank in ranks:
                found = cast("dist.ProcessGroup", made)
        assert found is not None
        # Making a group ends before the others are known to be there: connections may come after it, and those are
        # not cut where a peer is lost.
        dist.barrier(found)
    return found


def _measure(collectives: Collectives, ways: Mapping[str, AllReduce], budget_s: float) -> Choice:
    """Time each way for each size, in turn; the slowest rank's median counts, the same numbers on all ranks."""
    started = time.monotonic()
    timed: list[Timed] = []
    for size_bytes in _SIZES:
        tensor = torch.zeros(size_bytes // 4)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(_REPEATS + 1):
            for name, way in ways.items():
                # So that no rank pays for another's delay.
                collectives.sum(torch.zeros(1))
                began = time.perf_counter()
                way.start(tensor).wait()
                found[name].append(time.perf_counter() - began)
            # The first one opens connections, and is not counted; of a slow one, one is enough.
            if number and _worst(collectives, time.monotonic() - started) > budget_s * 0.5:
                break
        medians = {name: statistics.median(seconds[1:]) for name, seconds in found.items()}
        timed.append(Timed(size_bytes, {name: _worst(collectives, seconds) for name, seconds in medians.items()}))
        spent_s = _worst(collectives, time.monotonic() - started)
        # What the next, eight times as large, would take at least: two turns of each way.
        if spent_s + 16 * sum(timed[-1].seconds.values()) > budget_s and len(timed) > 1:
            break
    return Choice(tuple(timed), _worst(collectives, time.monotonic() - started))


def _worst(collectives: Collectives, seconds: float) -> float:
    return max(collectives.gather(seconds))


# ---- results of earlier measurements


class _Kept(msgspec.Struct):
    """A choice on disk."""

    at_s: float
    timed: tuple[Timed, ...]


def _key(arranged: Sequence[Arrangement], hosts: Sequence[str]) -> str:
    text = "\n".join([str([one.nodes for one in arranged]), *hosts, dist.get_backend(), str(_METHOD)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(path: Path) -> Choice | None:
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError):
        return None  # not there, or of another release: it is measured again
    young = time.time() - kept.at_s < _KEPT_S
    return Choice(kept.timed, reused=True) if young else None


def _write(path: Path, choice: Choice) -> None:
    write_down(path, msgspec.json.encode(_Kept(time.time(), choice.timed)))
