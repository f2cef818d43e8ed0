"""Sums over the ranks of an axis: the back end's own ring, and a hierarchy that spares the links between nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import torch
import torch.distributed as dist

from distroml.runtime.comm.algorithms.arrangement import Arrangement
from distroml.runtime.comm.backends import watched
from distroml.runtime.comm.lane import Lane
from distroml.runtime.comm.moves import trade
from distroml.runtime.comm.wire import sent_bytes
from distroml.runtime.elastic import Pending, communication


class AllReduce(Protocol):
    """One way to sum a tensor over the ranks of an axis. Every rank makes the same sums in the same order.

    A user has them begun by `start`, or makes them on a thread of its own by `sum`: in one order they are in neither
    where it does both at once.
    """

    @property
    def name(self) -> str:
        """For people: "flat", "hierarchical"."""
        ...

    def start(self, tensor: torch.Tensor) -> Pending:
        """Begin to replace contiguous `tensor` by its sum over the ranks: the same bits on each, once `wait()` is back.

        `wait()` raises `PeerLost`.
        """
        ...

    def sum(self, tensor: torch.Tensor) -> None:
        """The same on the calling thread, complete on return (on CUDA: for the current stream). Raises `PeerLost`."""
        ...

    def sent_bytes(self, payload_bytes: int) -> Mapping[str, int]:
        """Bytes that this rank sends for one sum of a tensor of that size, by level of the links."""
        ...


class Flat:
    """The back end's own all-reduce, in the order of the group's ranks (Gloo: a ring; NCCL: rings and trees)."""

    name = "flat"

    def __init__(self, group: dist.ProcessGroup, level: str = "node") -> None:
        """Over `group`; `level` is that of the link to the neighbour to which this rank sends."""
        self._group = group
        self._level = level

    def start(self, tensor: torch.Tensor) -> Pending:
        """See `AllReduce`."""
        with communication():
            work = cast("dist.Work | None", dist.all_reduce(tensor, group=self._group, async_op=True))
            return Pending(watched(work, self._group))

    def sum(self, tensor: torch.Tensor) -> None:
        """See `AllReduce`."""
        with communication():
            dist.all_reduce(tensor, group=self._group)

    def sent_bytes(self, payload_bytes: int) -> dict[str, int]:
        """See `AllReduce`."""
        return {self._level: sent_bytes("sum", payload_bytes, self._group.size())}


class Hierarchical:
    """Reduce-scatter inside the node, all-reduce of each share between nodes, all-gather inside.

    Every rank moves its own share between nodes, so that a node sends `2 (n - 1) / n` of the tensor over its link,
    n being the number of nodes; a ring through all N ranks sends `2 (N - 1) / N`. On processors only: NCCL knows its
    topology and does the like by itself.
    """

    name = "hierarchical"

    def __init__(self, arrangement: Arrangement, inside: dist.ProcessGroup, across: dist.ProcessGroup) -> None:
        """`arrangement` is layered; the groups are this rank's node, and its peers in other nodes: of no other use."""
        self._extent = len(arrangement.nodes[0])
        self._nodes = len(arrangement.nodes)
        self._inside = inside
        self._across = across
        self._place = dist.get_rank(inside)
        self._others = [place for place in range(self._extent) if place != self._place]
        self._lane: Lane | None = None

    def start(self, tensor: torch.Tensor) -> Pending:
        """See `AllReduce`."""
        flat = tensor.view(-1)
        if self._lane is None:
            self._lane = Lane("distroml-all-reduce", torch.device("cpu"))
        return Pending(self._lane.start(lambda: self._sum(flat)))

    def sum(self, tensor: torch.Tensor) -> None:
        """See `AllReduce`."""
        with communication():
            self._sum(tensor.view(-1))

    def _sum(self, flat: torch.Tensor) -> None:
        shares = flat.tensor_split(self._extent)
        own = shares[self._place]
        arrived = [torch.empty_like(own) for _ in self._others]
        # Point to point: measured faster than Gloo's all-to-all and all-gather, and without copies.
        trade(
            list(zip(self._others, arrived, strict=True)),
            [(place, shares[place]) for place in self._others],
            self._inside,
        )
        for part in arrived:
            own.add_(part)
        if own.numel():
            dist.all_reduce(own, group=self._across)
        trade(
            [(place, shares[place]) for place in self._others],
            [(place, own) for place in self._others],
            self._inside,
        )

    def sent_bytes(self, payload_bytes: int) -> dict[str, int]:
        """See `AllReduce`."""
        share = -(-payload_bytes // self._extent)
        within = sent_bytes("reduce_scatter", payload_bytes, self._extent) + sent_bytes("gather", share, self._extent)
        return {"node": within, "cluster": sent_bytes("sum", share, self._nodes)}
