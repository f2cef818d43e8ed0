"""What each rank of the pool does to sum along an axis."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distroml.runtime.comm.algorithms import Chosen, all_reduce_along
from distroml.runtime.comm.rounds import Peers
from distroml.runtime.compress import Round
from distroml.runtime.elastic import World

LANE = "distroml-all-reduce"


def _along(world: World, hosts: list[str], axis: int = 0, cache: str = "") -> Chosen:
    """Sums over all ranks, or over groups of `axis` neighbours, as if ranks ran on `hosts`."""
    os.environ["DISTROML_HOST"] = hosts[world.rank]
    group = dist.group.WORLD
    if axis:
        for first in range(0, world.world_size, axis):
            made = dist.new_group(list(range(first, first + axis)))
            if first <= world.rank < first + axis:
                group = made
    try:
        return all_reduce_along(world, group, cache=Path(cache) if cache else None)
    finally:
        del os.environ["DISTROML_HOST"]


def _own(rank: int, numel: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * numel + rank)
    return (torch.randn(numel, generator=generator, dtype=torch.float64) * 100).to(dtype)


def sums(world: World, hosts: list[str], sizes: list[int], dtypes: list[str], axis: int = 0) -> dict[str, Any]:
    """Sums by every way that there is, all of a way's started before the first is waited for."""
    chosen = _along(world, hosts, axis)
    ranks = chosen.arrangement.ranks
    errors: dict[str, float] = {}
    bits = hashlib.sha256()
    for name, way in chosen.ways.items():
        cases = [(size, getattr(torch, dtype)) for size in sizes for dtype in dtypes]
        tensors = [_own(world.rank, size, dtype) for size, dtype in cases]
        for pending in [way.start(tensor) for tensor in tensors]:
            pending.wait()
        worst = 0.0
        for (size, dtype), tensor in zip(cases, tensors, strict=True):
            whole = torch.stack([_own(rank, size, dtype) for rank in ranks]).double()
            error = (tensor.double() - whole.sum(0)).abs()
            scale = whole.abs().sum(0).clamp(min=1.0) * max(torch.finfo(dtype).eps, 1e-300)
            worst = max(worst, float((error / scale).max()) if size else 0.0)
            bits.update(tensor.view(torch.uint8).numpy().tobytes())
        errors[name] = worst
    return {
        "errors": errors,
        "bits": bits.hexdigest(),
        "ranks": list(ranks),
        "ring": list(chosen.arrangement.ring),
        "sent": {name: dict(way.sent_bytes(1 << 20)) for name, way in chosen.ways.items()},
    }


def rounds(world: World, hosts: list[str]) -> dict[str, Any]:
    """Each kind of round over all ranks: whether what came back is right, and bytes by level."""
    chosen = _along(world, hosts)
    peers = Peers(dist.group.WORLD, chosen, chosen.arrangement)
    ranks, own = world.world_size, _own(world.rank, 400, torch.bfloat16)
    others = torch.stack([_own(rank, 400, torch.bfloat16) for rank in range(ranks)])
    right: dict[str, bool] = {}
    sent: dict[str, dict[str, int]] = {}
    for how, wanted in (("gather", others), ("scatter", others.view(ranks, ranks, -1)[:, world.rank])):
        right[how] = torch.equal(peers.make(Round(how, own.clone())), wanted)
        sent[how] = dict(peers.take())
    total = peers.make(Round("sum", own.float()))
    right["sum"] = torch.allclose(total, others.float().sum(0), rtol=1e-5, atol=1e-3)
    sent["sum"] = dict(peers.take())
    right["empty"] = peers.make(Round("gather", own[:0])).shape == (ranks, 0) and not peers.take()
    return {"right": right, "sent": sent, "flat": dict(chosen.ways["flat"].sent_bytes(1600))}


def choose_twice(world: World, hosts: list[str], cache: str) -> dict[str, Any]:
    """What is chosen, and what by those who come later."""
    first, again = _along(world, hosts, cache=cache), _along(world, hosts, cache=cache)
    tensor = torch.ones(1 << 18)
    again.start(tensor).wait()
    return {
        "told": [dict(one.choice.told()) for one in (first, again)],
        "ways": sorted(first.ways),
        "sum": tensor.unique().tolist(),
    }


def threads_left(world: World, hosts: list[str]) -> list[int]:
    """Threads of sums that are there while one is in use, and after its end."""

    def count() -> int:
        return sum(thread.name == LANE for thread in threading.enumerate())

    before = count()
    chosen = _along(world, hosts)
    lanes = [thread for thread in threading.enumerate() if thread.name == LANE]
    used = count()
    del chosen
    gc.collect()
    for lane in lanes:
        lane.join(10)
    return [before, used, count()]
