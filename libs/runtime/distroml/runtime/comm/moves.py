"""Bytes moved between ranks over Gloo in both directions at once.

Gloo lets a peer send once a receive is posted, and says so on the connection that it sends on itself. Its own
collectives send first, so that the word often waits behind a large message and the directions take turns: on a slow
link a gather takes 1.5 times as long as its bytes, and an all-to-all twice. Here all receives are posted before
anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist


def ring_gather(
    got: torch.Tensor, given: torch.Tensor, group: dist.ProcessGroup, fill: Callable[[], None] | None = None
) -> None:
    """Every rank's `given`, `[n]`, into the rows of `got`, `[ranks, n]`: each goes once around the ring of ranks.

    `given` may be this rank's row. What `fill` writes to it need not be there before: what others give comes meanwhile.

    Raises:
        RuntimeError: another rank is gone.
    """
    rank, ranks = group.rank(), group.size()
    left, right = (rank - 1) % ranks, (rank + 1) % ranks
    coming = [(rank - 1 - hop) % ranks for hop in range(ranks - 1)]
    arriving = [_receive(got[origin], left, group, hop) for hop, origin in enumerate(coming)]
    if fill is not None:
        fill()
    leaving = [_send(given, right, group, 0)]
    # While the others' are on their way: between processes of a host it takes a tenth of that time.
    _fill(got[rank], given)
    for hop, (origin, arrival) in enumerate(zip(coming[:-1], arriving, strict=False), start=1):
        arrival.wait()
        leaving.append(_send(got[origin], right, group, hop))
    for work in (*arriving[-1:], *leaving):
        work.wait()


def swap(got: torch.Tensor, given: torch.Tensor, group: dist.ProcessGroup) -> None:
    """Row r of `given`, `[ranks, n]`, to rank r, whose `got` has it in this rank's row: an all-to-all.

    Raises:
        RuntimeError: another rank is gone.
    """
    rank, ranks = group.rank(), group.size()
    # Each begins with another peer, so that nobody has to hear all of them at once.
    sources = [(rank - hop) % ranks for hop in range(1, ranks)]
    targets = [(rank + hop) % ranks for hop in range(1, ranks)]
    works = _begin([(peer, got[peer]) for peer in sources], [(peer, given[peer]) for peer in targets], group)
    _fill(got[rank], given[rank])
    for work in works:
        work.wait()


def trade(
    received: Sequence[tuple[int, torch.Tensor]], sent: Sequence[tuple[int, torch.Tensor]], group: dist.ProcessGroup
) -> None:
    """Receive a tensor from each rank that is named, and send one to each; empty ones are not sent.

    Raises:
        RuntimeError: another rank is gone.
    """
    for work in _begin(received, sent, group):
        work.wait()


def _begin(
    received: Sequence[tuple[int, torch.Tensor]], sent: Sequence[tuple[int, torch.Tensor]], group: dist.ProcessGroup
) -> list[dist.Work]:
    works = [_receive(tensor, peer, group, 0) for peer, tensor in received if tensor.numel()]
    return works + [_send(tensor, peer, group, 0) for peer, tensor in sent if tensor.numel()]


def _fill(own: torch.Tensor, given: torch.Tensor) -> None:
    if own.data_ptr() != given.data_ptr():
        own.copy_(given)


def _receive(into: torch.Tensor, peer: int, group: dist.ProcessGroup, tag: int) -> dist.Work:
    return cast("dist.Work", cast("Any", dist).irecv(into, group=group, group_src=peer, tag=tag))


def _send(tensor: torch.Tensor, peer: int, group: dist.ProcessGroup, tag: int) -> dist.Work:
    return cast("dist.Work", cast("Any", dist).isend(tensor, group=group, group_dst=peer, tag=tag))
