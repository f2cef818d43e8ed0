"""Running statistics of batch norms, which passes change on each rank by itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from distroml.runtime.elastic import communication
from distroml.runtime.parallel.mesh import Mesh


def average_statistics(roots: Iterable[nn.Module], mesh: Mesh) -> set[int]:
    """Average the statistics under `roots` over the data-parallel ranks; their ids. Collective. Raises `PeerLost`.

    They are exponential averages, so that averaging them now and then gives what averaging after every step would.
    """
    averaged: set[int] = set()
    for module in (inner for root in roots for inner in root.modules()):
        if isinstance(module, _NormBase) and module.track_running_stats:
            for statistic in (module.running_mean, module.running_var):
                if statistic is not None and id(statistic) not in averaged:
                    averaged.add(id(statistic))
                    _average(statistic, mesh)
    return averaged


def _average(statistic: torch.Tensor, mesh: Mesh) -> None:
    for axis in ("dp_replicate", "dp_shard"):
        group = mesh.group(axis)
        if group is not None:
            with communication():
                dist.all_reduce(statistic, group=group)
    statistic.div_(mesh.plan.dp)
