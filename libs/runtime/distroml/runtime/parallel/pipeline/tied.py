"""Gradients of parameters that several stages use: afterwards each holds the sum over all of them, bit-equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from distroml.runtime.elastic import communication


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_tied(
    holders: Mapping[str, Sequence[int]], mine: Mapping[int, Mapping[str, nn.Parameter]], group: dist.ProcessGroup
) -> None:
    """Replace the gradients of tied parameters by their sums, added up in the order of stages on every rank.

    There are hardly ever more than two holders, mostly first and last stage: each sends its part to every other, which
    needs no further process group, and no rank waits for one that holds no such parameter.

    Args:
        holders: stages that use a parameter, by its name; equal on all ranks.
        mine: this rank's parameters by stage and name. Sharded alike on all holders.
        group: the ranks of one pipeline; stage `i` lies on rank `i % size`.
    """
    size, me = group.size(), group.rank()
    for name, stages in holders.items():
        own = [stage for stage in stages if stage in mine]
        if not own:
            continue
        parts: dict[int, torch.Tensor] = {}
        for stage in own:
            parameter = mine[stage][name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parts[stage] = _local(parameter.grad)
        peers = [stage for stage in stages if stage % size != me]
        operations: list[dist.P2POp] = []
        for stage in peers:
            parts[stage] = torch.empty_like(parts[own[0]], memory_format=torch.contiguous_format)
        for peer in dict.fromkeys(stage % size for stage in peers):
            rank = dist.get_global_rank(group, peer)
            operations += [dist.P2POp(dist.isend, parts[stage].contiguous(), rank, group) for stage in own]
            operations += [dist.P2POp(dist.irecv, parts[stage], rank, group) for stage in peers if stage % size == peer]
        with communication():
            for work in dist.batch_isend_irecv(operations) if operations else []:
                work.wait()
        total = parts[stages[0]].clone()
        for stage in stages[1:]:
            total += parts[stage]
        for stage in own:
            parts[stage].copy_(total)
