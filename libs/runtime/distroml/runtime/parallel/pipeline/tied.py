"""Parameters that several stages use: every rank that holds one gets the sum of their gradients, bit-equal.

Where two stages of one rank use it, the first stage's counts, for optimizers and checkpoints. Mostly both share one
object; sharding makes two of it, and then the second follows the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from distroml.runtime.elastic import communication

Held = Mapping[int, Mapping[str, nn.Parameter]]  # stage to name to parameter


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copies(name: str, stages: Sequence[int], mine: Held) -> list[nn.Parameter]:
    """This rank's distinct objects of one parameter, in the order of stages."""
    found = [mine[stage][name] for stage in stages if stage in mine]
    return list({id(parameter): parameter for parameter in found}.values())


def follow_first(holders: Mapping[str, Sequence[int]], mine: Held) -> None:
    """Give further copies of a parameter on this rank the first one's value, as an optimizer may have changed it."""
    with torch.no_grad():
        for name, stages in holders.items():
            for other in (copies := _copies(name, stages, mine))[1:]:
                _local(other).copy_(_local(copies[0]))


def sum_tied(holders: Mapping[str, Sequence[int]], mine: Held, group: dist.ProcessGroup) -> None:
    """Make the gradients of tied parameters their sums, added up in one order everywhere; further copies lose theirs.

    There are hardly ever more than two ranks, mostly those of first and last stage: each sends its part to every other,
    which needs no further process group, and no rank waits for one that holds no such parameter.

    Args:
        holders: stages that use a parameter, by its name; equal on all ranks.
        mine: this rank's parameters. Sharded alike on all holders.
        group: the ranks of one pipeline; stage `i` lies on rank `i % size`.

    Raises:
        PeerLost: another holder is gone.
    """
    size, me = group.size(), group.rank()
    for name, stages in holders.items():
        copies = _copies(name, stages, mine)
        if not copies:
            continue
        first = copies[0]
        if first.grad is None:
            first.grad = torch.zeros_like(first)
        own = _local(first.grad)
        for other in copies[1:]:
            if other.grad is not None:
                own += _local(other.grad)
                other.grad = None
        parts = {me: own}
        operations: list[dist.P2POp] = []
        for peer in dict.fromkeys(stage % size for stage in stages):
            if peer != me:
                parts[peer] = torch.empty_like(own, memory_format=torch.contiguous_format)
                rank = dist.get_global_rank(group, peer)
                operations.append(dist.P2POp(dist.isend, own.contiguous(), rank, group))
                operations.append(dist.P2POp(dist.irecv, parts[peer], rank, group))
        with communication():
            for work in dist.batch_isend_irecv(operations) if operations else []:
                work.wait()
        ranks = sorted(parts)
        total = parts[ranks[0]].clone()
        for rank in ranks[1:]:
            total += parts[rank]
        own.copy_(total)
