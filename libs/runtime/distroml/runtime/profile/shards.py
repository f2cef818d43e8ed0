"""What it takes to gather one unit's shards and to scatter its gradients through torch's FSDP, copies and all.

On a CPU FSDP waits for each exchange, so that its own copies and calls stand beside the links' time; timing the
exchange alone would promise too much.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from distroml.runtime.elastic import communication
from distroml.runtime.typed import backward

_REPEATS = 4


class ShardTimes(NamedTuple):
    """Seconds of one unit: gathering it, and scattering its gradients."""

    gather_s: float
    scatter_s: float


class _Touch(torch.autograd.Function):
    """Uses a weight without computing anything with it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        ctx.gradient = gradient
        # A view would make torch warn of what may be done to it in place.
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], ctx.gradient, None


class _Unit(nn.Module):
    def __init__(self, elements: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(elements))
        self.gradient = torch.zeros(elements)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", _Touch.apply(x, self.weight, self.gradient))


def time_shards(nbytes: int, group: dist.ProcessGroup) -> ShardTimes:
    """Time a unit of `nbytes` of float32 over the ranks of `group`, on the CPU. Collective."""
    mesh = DeviceMesh.from_group(group, "cpu")
    unit = _Unit(nbytes // 4)
    sharded = fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    # As the plans do it: sums, without torch's division.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
    x = torch.zeros(1, requires_grad=True)
    gathers: list[float] = []
    boths: list[float] = []
    with communication():
        for _ in range(_REPEATS):
            started = time.perf_counter()
            y = cast("torch.Tensor", unit(x))
            middle = time.perf_counter()
            backward(y.sum())
            boths.append(time.perf_counter() - middle)
            gathers.append(middle - started)
    gather_s = sorted(gathers[1:])[(_REPEATS - 1) // 2]
    # The backward pass gathers again before it scatters.
    both_s = sorted(boths[1:])[(_REPEATS - 1) // 2]
    return ShardTimes(gather_s, max(both_s - gather_s, 0.1 * both_s))
