"""Which ranks of an axis share a host, and the orders and groups that follow from it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from distroml.runtime.comm.wire import Kind, sent_bytes


def host_name() -> str:
    """What tells this process's host from others: `$DISTROML_HOST`, or the host's own name."""
    return os.environ.get("DISTROML_HOST") or socket.gethostname()


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The ranks of one axis, by the node on which they run.

    Attributes:
        ranks: in the axis's own order.
        nodes: the same ranks by node; nodes in the order in which they first appear, ranks of each in the axis's.
    """

    ranks: tuple[int, ...]
    nodes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, ranks: Sequence[int], hosts: Mapping[int, str] | Sequence[str]) -> Arrangement:
        """How `ranks` lie on the hosts, of which `hosts` names that of each rank."""
        nodes: dict[str, list[int]] = {}
        for rank in ranks:
            nodes.setdefault(hosts[rank], []).append(rank)
        return cls(tuple(ranks), tuple(tuple(node) for node in nodes.values()))

    @property
    def ring(self) -> tuple[int, ...]:
        """The order in which a ring through all ranks leaves each node once."""
        return tuple(chain.from_iterable(self.nodes))

    @property
    def interleaved(self) -> bool:
        """Whether a ring in the axis's own order leaves nodes more often than it must."""
        node = {rank: number for number, ranks in enumerate(self.nodes) for rank in ranks}
        ranks = self.ranks
        return sum(node[a] != node[b] for a, b in zip(ranks, (*ranks[1:], ranks[0]), strict=True)) > len(self.nodes)

    @property
    def layered(self) -> bool:
        """Whether there are several nodes of several ranks each, all of one size: what a hierarchy needs."""
        sizes = {len(node) for node in self.nodes}
        return len(self.nodes) > 1 and len(sizes) == 1 and sizes != {1}

    @property
    def across(self) -> tuple[tuple[int, ...], ...]:
        """Of a layered axis: the ranks with the same place in each node, by place."""
        return tuple(zip(*self.nodes, strict=True))

    @property
    def pattern(self) -> tuple[int, ...]:
        """The number of each rank's node, in the axis's order: axes of one pattern are summed in one order."""
        return tuple(number for rank in self.ranks for number, node in enumerate(self.nodes) if rank in node)

    def level(self, rank: int, ring: Sequence[int] | None = None) -> str:
        """The level of the link over which `rank` sends in a ring: `ring`, or the one that leaves each node once."""
        order = self.ring if ring is None else ring
        # Gloo's ring sends towards lower places; with any other direction only the rank that crosses differs.
        return "node" if order[order.index(rank) - 1] in self._node_of(rank) else "cluster"

    def sent(self, kind: Kind, payload_bytes: int, rank: int) -> dict[str, int]:
        """Bytes that `rank` sends in one collective in the axis's own order, by level; see `sent_bytes`."""
        whole = sent_bytes(kind, payload_bytes, len(self.ranks))
        if kind != "scatter":
            return {self.level(rank, self.ranks): whole}
        mates = len(self._node_of(rank)) - 1
        within = whole * mates // max(1, len(self.ranks) - 1)
        return {level: part for level, part in (("node", within), ("cluster", whole - within)) if part}

    def _node_of(self, rank: int) -> tuple[int, ...]:
        return next(node for node in self.nodes if rank in node)
