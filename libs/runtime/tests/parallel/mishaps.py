"""What each rank of the pool does in tests of exchanges that end badly: broken gradients, lost peers, refusals."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from distroml.runtime.comm.backends import now_in
from distroml.runtime.comm.backends.torch_own import Gloo
from distroml.runtime.compress import Round
from distroml.runtime.compress.optim import OneBitAdam
from distroml.runtime.elastic import PeerLost, World
from distroml.runtime.parallel import Compression, CompressionDiffers, ParallelModel, PlanRefused, RanksDiffer
from distroml.runtime.parallel.residuals import folded_residuals
from libs.runtime.tests.parallel.exchanging import MICROBATCH, step
from libs.runtime.tests.parallel.models import Quirks
from libs.runtime.tests.parallel.ranks import spread

# What an agent tells its worker.
_LOST = "lost"


def lost_between_hosts(world: World, hosts: str, cache: str, compress: str) -> str:
    """Rank 1's connections end while all ranks sum by the hierarchy, again and again; what each rank's wait ends in.

    As in training, a rank that lost another ends its own connections, since ranks of other hosts may wait for it alone;
    and whoever is not told by them, in the middle of a message, is told by its agent.
    """
    backend = Gloo()
    now_in(backend)
    os.environ |= {"DISTROML_HOST": hosts[world.rank], "DISTROML_CACHE": cache}
    try:
        with backend.connecting():
            parallel = spread(world, f"dp_replicate={world.world_size}", Quirks(width=8), MICROBATCH, compress=compress)
            ways = parallel.sums.ways
            ways.update(dict.fromkeys(ways, ways["hierarchical"]))
            step(parallel, 1)
    finally:
        del os.environ["DISTROML_HOST"], os.environ["DISTROML_CACHE"]
    agent = dist.distributed_c10d._get_default_store()
    threading.Thread(target=_heed, args=(agent, backend), daemon=True).start()
    if world.rank == 1:
        threading.Timer(0.2, backend.sever).start()
    exchange = parallel.exchange
    try:
        for number in range(2, 1_000_000):
            if exchange is None:
                parallel.sums.start(torch.ones(1 << 18)).wait()
                continue
            exchange.open(number)
            exchange.announce(torch.tensor(1.0))
            begun = [exchange.begin(one.number, one.spec, torch.ones(one.spec.numel)) for one in exchange.buffers]
            for pending in begun:
                pending.wait()
    except PeerLost:
        backend.sever()
        agent.set(_LOST, "")
        backend.outlive()
        return "lost"
    finally:
        parallel.close()
        now_in(None)
    return "no error"


def _heed(agent: dist.Store, backend: Gloo) -> None:
    agent.wait([_LOST], timedelta(seconds=120))
    backend.sever()


def threads(world: World, plan: str) -> int:
    """How many threads this process had before it makes a step under a plan, and takes everything down again."""
    found = len(os.listdir("/proc/self/task"))
    parallel = spread(world, plan, Quirks(width=8), MICROBATCH, torch.float32)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=0.1)
    step(parallel, 1)
    optimizer.step()
    parallel.close()
    return found


def differing(world: World) -> str:
    """Ranks that want different compression."""
    try:
        spread(world, "dp_replicate=2", Quirks(), MICROBATCH, compress="int8" if world.rank else "none")
    except CompressionDiffers as error:
        return str(error)
    return "agreed"


def apart(world: World, plans: list[str]) -> str:
    """What each rank is told where each was given a plan of its own."""
    try:
        spread(world, plans[world.rank], Quirks(width=8), MICROBATCH)
    except RanksDiffer as error:
        return str(error)
    return "agreed"


def moving_apart(world: World) -> str:
    """What each rank is told where their optimizers are to warm up for different numbers of steps."""
    parallel = spread(world, "dp_replicate=2", Quirks(width=8), MICROBATCH, torch.float32, compress="sign")
    optimizer = OneBitAdam(parallel.parameters(), warm_up_steps=2 + world.rank)
    try:
        parallel.exchange_for(optimizer, Compression("sign"), 0)
    except CompressionDiffers as error:
        return str(error)
    finally:
        parallel.close()
    return "agreed"


def broken(world: World, plan: str, **options: Any) -> dict[str, Any]:
    """Three steps; in the second, rank 1 has an infinite gradient of one parameter."""
    parallel = spread(world, plan, Quirks(width=8), MICROBATCH, torch.float32, **options)
    norms: list[float] = []
    kept: list[float] = []
    blamed: list[str] = []
    for number in (1, 2, 3):
        handles: list[Any] = []
        if number == 2 and world.rank == 1:
            handles = breaking(parallel, "blocks.1.up")
        norms.append(float(step(parallel, number)[1]))
        for handle in handles:
            handle.remove()
        if parallel.exchange is not None:
            folded = folded_residuals(parallel.exchange, parallel.gradients.parameters)
            kept.append(sum(float(one.square().sum()) for one in folded.values()))
        blamed.append(parallel.blame(parallel.non_finite))
    parallel.close()
    return {"norms": norms, "kept": kept, "blamed": blamed}


def breaking(parallel: ParallelModel, name: str) -> list[Any]:
    """Make the weight's gradient of the layer of that name infinite, wherever its elements lie, until removed."""
    handles: list[Any] = []

    def entered(layer: torch.nn.Module, _: Any) -> None:
        # Where parameters are sharded, this is the one that was gathered.
        handles.append(layer.weight.register_hook(lambda gradient: gradient * float("inf")))

    (layer,) = (one for root in parallel.part.roots for path, one in root.named_modules() if path.endswith(name))
    handles.append(layer.register_forward_pre_hook(entered))
    return handles


def broken_early(world: World) -> dict[str, Any]:
    """In the second step rank 1 has an infinite gradient in the bucket that is exchanged first of several.

    Returns:
        "moved": by how much each bucket's residual changed in that step, over its norm, in the order of exchanges;
        "nan": whether its sum has any.
    """
    parallel = spread(
        world, "dp_replicate=2,bucket_mb=0.0005", Quirks(width=8), MICROBATCH, torch.float32, compress="int8"
    )
    exchange = parallel.exchange
    last = exchange.buffers[0].spec.segments[0].name
    step(parallel, 1)
    before = [buffer.kept() for buffer in exchange.buffers]
    if world.rank == 1:
        dict(parallel.part.held)[last].register_hook(lambda gradient: gradient * float("inf"))
    step(parallel, 2)
    flats = parallel.gradients.flats
    found = {
        "moved": [
            float((new.kept() - old).norm() / old.norm()) for old, new in zip(before, exchange.buffers, strict=True)
        ],
        "nan": [bool(flat.isnan().any()) for flat in flats],
    }
    parallel.close()
    return found


def broken_in_one_place(world: World, plan: str) -> dict[str, Any]:
    """A loop that skips steps whose norm is no finite number. In the second, rank 1's own part of one gradient is none.

    Returns:
        "norms"; "kept": a hash of what this rank keeps of each bucket that further ranks hold alike, by its first
        parameter; "moved": of those in the second step; "held": a hash of each parameter on this rank.
    """
    quirks = Quirks(tied=True, width=8)
    parallel = spread(world, f"{plan},bucket_mb=0.0005", quirks, MICROBATCH, torch.float32, compress="int8")
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    alike = [one for one in parallel.exchange.buffers if one.number in parallel.gradients.alike]
    norms: list[float] = []
    moved: list[str] = []
    for number in (1, 2, 3):
        handles = breaking(parallel, "blocks.1.up") if number == 2 and world.rank == 1 else []
        before = [one.kept() for one in alike]
        norms.append(float(step(parallel, number)[1]))
        for handle in handles:
            handle.remove()
        if math.isfinite(norms[-1]):
            optimizer.step()
        else:
            pairs = zip(alike, before, strict=True)
            moved = [one.spec.segments[0].name for one, old in pairs if not torch.equal(one.kept(), old)]
    kept = {one.spec.segments[0].name: _hash_of(one.kept()) for one in alike}
    held = {name: _hash_of(own) for name, own in parallel.local_tensors()}
    parallel.close()
    return {"norms": norms, "kept": kept, "moved": moved, "held": held}


def _hash_of(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def lost_in_an_exchange(world: World, compress: str, at: int) -> str:
    """Rank 1 goes away inside round `at` of a coded exchange, when only rank 2 has its code; what all waits end in.

    As in training, a rank that lost another ends its own connections: ranks farther round the ring wait for it alone.
    """
    backend = Gloo()
    now_in(backend)
    with backend.connecting():
        parallel = spread(world, f"dp_replicate={world.world_size}", Quirks(width=32), MICROBATCH, compress=compress)
        step(parallel, 1)
    exchange = parallel.exchange
    peers = exchange._peers
    make, made = peers.make, 0

    def dying(wanted: Round) -> torch.Tensor:
        nonlocal made
        made += 1
        if made > at:
            rows = wanted.filled().view(torch.uint8).view(world.world_size if wanted.how == "scatter" else 1, -1)
            dist.isend(rows[2 % len(rows)], group=peers.group, group_dst=2).wait()
            backend.sever()
            wanted = replace(wanted, fill=None)
        return make(wanted)

    if world.rank == 1:
        peers.make = dying
    exchange.open(2)
    exchange.announce(torch.tensor(1.0))
    waiting = [exchange.begin(one.number, one.spec, torch.ones(one.spec.numel)) for one in exchange.buffers]
    try:
        for pending in waiting:
            pending.wait()
    except PeerLost:
        backend.sever()
        backend.outlive()
        return "lost"
    finally:
        parallel.close()
        now_in(None)
    return "no error"


def refused(world: World, plan: str, **options: Any) -> str:
    """What is said of a plan that is not possible."""
    try:
        spread(world, plan, Quirks(width=8), MICROBATCH, torch.float32, **options)
    except (PlanRefused, ValueError) as error:
        return str(error)
    return "accepted"


def shards_and_tp(world: World) -> str:
    """What is said of compress_shard beside tp."""
    try:
        spread(world, "dp_shard=2,tp=2", Quirks(width=8), MICROBATCH, torch.float32, compress_shard="int8")
    except PlanRefused as error:
        return str(error)
    return "accepted"
