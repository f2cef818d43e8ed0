"""What a microbatch costs on a stage of a pipeline beside computation and messages: look-ups, pieces of graphs."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist
from torch import nn

from distroml.planner import Topology
from distroml.planner.cost.collectives import send_s
from distroml.runtime.elastic import World, communication
from distroml.runtime.parallel.parallelize import ParallelModel, parallelize
from distroml.runtime.typed import backward

_WIDTH = 8
# Few and many microbatches for each rank; the difference has no fill, drain or end of step in it.
_FEW, _MANY = 2, 8
_REPEATS = 3


class _Toy(nn.Module):
    """A chain whose computation is next to nothing."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


def _loss(model: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, int]:
    return model(batch).sum(), 1


def pass_s(world: World, topology: Topology) -> float:
    """Seconds that each microbatch adds on each stage. Collective; equal on every rank.

    Measured with a chain of tiny blocks, one on each rank, under 1F1B.
    """
    ranks = world.world_size
    batch = torch.zeros(1, _WIDTH)
    parallel = parallelize(
        lambda: _Toy(ranks), f"pp={ranks},schedule=1f1b,microbatch=1", world=world, loss=_loss, sample=batch
    )
    few, many = (_seconds(parallel, [batch.to(world.device)] * size * ranks) for size in (_FEW, _MANY))
    parallel.close()
    block = nn.Linear(_WIDTH, _WIDTH).to(world.device)
    alone = min(_alone_s(block, batch.to(world.device)) for _ in range(_REPEATS))
    messages = 2 * send_s(topology.route(ranks, 1), batch.nbytes)
    found = (many - few) / ((_MANY - _FEW) * ranks) - alone - messages
    slowest = torch.tensor([max(0.0, found)], device=world.device)
    with communication():
        dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest)


def _seconds(parallel: ParallelModel, batches: list[torch.Tensor]) -> float:
    times: list[float] = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        parallel.finish(parallel.forward_backward(batches))
        times.append(time.perf_counter() - started)
    return min(times)


def _alone_s(block: nn.Module, x: torch.Tensor) -> float:
    started = time.perf_counter()
    backward(torch.tanh(block(x)).sum())
    return time.perf_counter() - started
