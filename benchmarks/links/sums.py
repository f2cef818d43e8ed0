"""One rank of `hierarchical`: sums over all ranks in one of three ways."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from distroml.runtime.comm.algorithms import AllReduce, Arrangement, Flat, Hierarchical, host_name
from distroml.runtime.elastic import Collectives, World
from links.serving import serve


class Rank:
    """Answers tasks; ranks are dealt out to hosts in blocks."""

    def __init__(self, world: World) -> None:
        self._world = world
        arranged = Arrangement.of(range(world.world_size), Collectives(world).gather(host_name()))
        zipped = [rank for peers in arranged.across for rank in peers]
        self._ways: dict[str, AllReduce] = {
            "node-major": Flat(self._group([arranged.ring])),
            "interleaved": Flat(self._group([zipped])),
            "hierarchical": Hierarchical(arranged, self._group(arranged.nodes), self._group(arranged.across)),
        }
        self._expected = float(sum(range(1, world.world_size + 1)))

    def _group(self, groups: Sequence[Sequence[int]]) -> Any:
        made = [dist.new_group(list(ranks), sort_ranks=False) for ranks in groups]
        return next(group for group, ranks in zip(made, groups, strict=True) if self._world.rank in ranks)

    def ready(self) -> dict[str, Any]:
        """Whether all ranks are there."""
        dist.barrier()
        return {"ready": True}

    def sum(self, way: str, megabytes: float) -> dict[str, Any]:
        """Seconds of one sum, and whether it is right."""
        tensor = torch.full((int(megabytes * (1 << 20)) // 4,), float(self._world.rank + 1))
        dist.barrier()
        started = time.perf_counter()
        self._ways[way].start(tensor).wait()
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "right": bool((tensor == self._expected).all())}


if __name__ == "__main__":
    serve(Rank, timeout_s=120)
