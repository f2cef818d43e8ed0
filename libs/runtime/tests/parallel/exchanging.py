"""What each rank of the pool does in tests of compressed exchanges: steps, with what came in and out looked at."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from distroml.runtime.comm.backends.connections import Connections
from distroml.runtime.compress.codecs import INT8
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import PeerLost, Pending, World
from distroml.runtime.parallel import CompressionDiffers, NonFinite, ParallelModel, PlanRefused
from distroml.runtime.parallel.buckets import BucketSpec
from distroml.runtime.parallel.residuals import folded_residuals
from distroml.runtime.parallel.shardsums import ShardSums
from libs.runtime.tests.parallel.models import Quirks, samples
from libs.runtime.tests.parallel.ranks import GLOBAL_BATCH, pieces, spread, under_plan

MICROBATCH = 2


class _Then:
    """A pending exchange, and what to do after it."""

    def __init__(self, pending: Pending, then: Callable[[], None]) -> None:
        self._pending, self._then = pending, then

    def wait(self) -> None:
        self._pending.wait()
        self._then()


@dataclass
class Watch:
    """What went into every bucket's exchange, summed over the ranks as it is, and what came out."""

    parallel: ParallelModel
    went_in: dict[int, torch.Tensor] = field(default_factory=dict)
    came_out: dict[int, torch.Tensor] = field(default_factory=dict)
    begun: int = 0

    def __post_init__(self) -> None:
        self._begin = self.parallel.exchange.begin
        self.parallel.exchange.begin = self.begin

    def begin(self, number: int, spec: BucketSpec, flat: torch.Tensor) -> Any:
        self.begun += 1
        self.went_in[number] = flat.double()
        return _Then(self._begin(number, spec, flat), lambda: self.came_out.__setitem__(number, flat.double()))

    def true_sums(self) -> dict[int, torch.Tensor]:
        group = self.parallel.mesh.group("dp_replicate")
        for flat in self.went_in.values():
            dist.all_reduce(flat, group=group)
        return self.went_in


def step(parallel: ParallelModel, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One step's gradients; every rank takes its share of the samples."""
    share = GLOBAL_BATCH // parallel.mesh.dp_size
    start = parallel.mesh.dp_rank * share
    batches = list(pieces(samples(GLOBAL_BATCH, 100 + number), start, start + share, MICROBATCH))
    return parallel.finish(parallel.forward_backward(batches, number))


def terms(number: int) -> int:
    """The step's global count of loss terms."""
    return int((samples(GLOBAL_BATCH, 100 + number)["targets"] != -100).sum())


def identity(
    world: World, plan: str, compress: str, then: str | None = None, steps: int = 4, **options: Any
) -> dict[str, Any]:
    """Steps under compression, from step 3 on by another scheme.

    Returns:
        "gap": of sum + kept * terms to what was to be told, relative to that, the worst of all buckets and steps;
        "kept": norm of what is kept at the end; "schemes" by which the last step went; "exchanges" begun.
    """
    quirks = Quirks(tied=True, late=True, width=8)
    parallel = spread(world, plan, quirks, MICROBATCH, torch.float32, compress=compress, **options)
    exchange = parallel.exchange
    watch = Watch(parallel)
    before = {buffer.number: torch.zeros(buffer.spec.numel) for buffer in exchange.buffers}
    if then is not None:
        for buffer in exchange.buffers:
            exchange.set_scheme(buffer.number, parse_scheme(then), from_step=3)
    worst = 0.0
    for number in range(1, steps + 1):
        step(parallel, number)
        after = exchange.fold()
        for bucket, true in watch.true_sums().items():
            kept = after.get(bucket, torch.zeros_like(before[bucket])).double()
            wanted = true + before[bucket].double() * terms(number)
            found = watch.came_out[bucket] + kept * terms(number)
            worst = max(worst, float((found - wanted).norm() / wanted.norm().clamp_min(1e-6)))
            before[bucket] = kept
    measured = exchange.measured()
    parallel.close()
    return {
        "gap": worst,
        "kept": float(torch.cat(list(before.values())).norm()),
        "schemes": sorted({one.scheme for one in measured}),
        "exchanges": watch.begun / len(exchange.buffers),
        "gradient_norms": [one.gradient_norm for one in measured],
        "bytes": sum(exchange.wire.take().values()),
        "state_bytes": exchange.state_bytes,
        "elements": sum(buffer.spec.numel for buffer in exchange.buffers),
    }


def course(world: World, plan: str, steps: int, dtype: str = "float32", **options: Any) -> dict[str, Any]:
    """A training's losses and bits, as this rank has them."""
    quirks = Quirks(tied=True, late=True, width=8)
    parallel = spread(world, plan, quirks, MICROBATCH, getattr(torch, dtype), **options)
    made = under_plan(parallel, MICROBATCH, 1.0, steps)
    parallel.close()
    return {"losses": made.losses, "bits": made.bits()}


def on_hosts(world: World, plan: str, hosts: str, way: str, cache: str, **options: Any) -> dict[str, Any]:
    """Train as if rank i were on host `hosts[i]`, all sums along dp_replicate by one algorithm.

    Returns:
        "losses" and "bits"; "sent" bytes by level in the last step; "held": a hash of each parameter on this rank.
    """
    os.environ |= {"DISTROML_HOST": hosts[world.rank], "DISTROML_CACHE": cache}
    try:
        quirks = Quirks(tied=True, late=True, width=8)
        parallel = spread(world, plan, quirks, 1, torch.float32, **options)
    finally:
        del os.environ["DISTROML_HOST"], os.environ["DISTROML_CACHE"]
    ways = parallel.sums.ways
    ways.update(dict.fromkeys(ways, ways[way]))
    under_plan(parallel, 1, 1.0, 2)
    parallel.sent()
    made = under_plan(parallel, 1, 1.0, 3)
    sent: Counter[str] = Counter()
    for (_, level, _), size in parallel.sent().items():
        sent[level] += size
    held = {name: hashlib.sha256(own.numpy().tobytes()).hexdigest() for name, own in parallel.local_tensors()}
    parallel.close()
    return {"losses": made.losses, "bits": made.bits(), "sent": dict(sent), "held": held}


def lost_between_hosts(world: World, hosts: str, cache: str, compress: str) -> str:
    """Rank 1's connections end while all ranks sum by the hierarchy, again and again; what each rank's wait ends in.

    As in training, a rank that lost another ends its own connections: ranks of other hosts may wait for it alone.
    """
    connections = Connections()
    os.environ |= {"DISTROML_HOST": hosts[world.rank], "DISTROML_CACHE": cache}
    try:
        parallel = spread(world, f"dp_replicate={world.world_size}", Quirks(width=8), MICROBATCH, compress=compress)
    finally:
        del os.environ["DISTROML_HOST"], os.environ["DISTROML_CACHE"]
    ways = parallel.sums.ways
    ways.update(dict.fromkeys(ways, ways["hierarchical"]))
    step(parallel, 1)
    connections.complete()
    if world.rank == 1:
        threading.Timer(0.2, connections.sever).start()
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
        connections.sever()
        return "lost"
    finally:
        parallel.close()
    return "no error"


def differing(world: World) -> str:
    """Ranks that want different compression."""
    try:
        spread(world, "dp_replicate=2", Quirks(), MICROBATCH, compress="int8" if world.rank else "none")
    except CompressionDiffers as error:
        return str(error)
    return "agreed"


def broken(world: World, plan: str, compress: str) -> dict[str, Any]:
    """Three steps; in the second, rank 1 has an infinite gradient of one parameter."""
    parallel = spread(world, plan, Quirks(width=8), MICROBATCH, torch.float32, compress=compress)
    names = dict(parallel.part.held)
    norms: list[float] = []
    kept: list[float] = []
    told: list[NonFinite] = []
    for number in (1, 2, 3):
        handle = None
        if number == 2 and world.rank == 1:
            handle = names["blocks.1.up.weight"].register_hook(lambda gradient: gradient * float("inf"))
        norms.append(float(step(parallel, number)[1]))
        if handle is not None:
            handle.remove()
        folded = folded_residuals(parallel.exchange, parallel.gradients.parameters)
        kept.append(sum(float(one.square().sum()) for one in folded.values()))
        told += parallel.exchange.non_finite
    parallel.close()
    return {"norms": norms, "kept": kept, "told": [[one.rank, one.parameter, one.step] for one in told]}


def broken_early(world: World) -> dict[str, Any]:
    """In the second step rank 1 has an infinite gradient in the bucket that is exchanged first of several.

    Returns:
        "moved": whether each bucket's residual changed in that step, in the order of exchanges; "nan" likewise.
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
        "moved": [not torch.equal(old, new.kept()) for old, new in zip(before, exchange.buffers, strict=True)],
        "nan": [bool(flat.isnan().any()) for flat in flats],
    }
    parallel.close()
    return found


def asked(world: World) -> dict[str, Any]:
    """Steps in which ranks tell one another what exchanges took, rank 1 late in each; samples are taken of some."""
    plan = f"dp_replicate={world.world_size},bucket_mb=0.001"
    parallel = spread(world, plan, Quirks(width=8), MICROBATCH, torch.float32, compress="auto")
    exchange = parallel.exchange
    for buffer in exchange.buffers:
        exchange.set_scheme(buffer.number, parse_scheme("int8"), from_step=1)
    buckets, cosines, seconds, late_s = len(exchange.buffers), {}, [], 0.3
    for number in range(1, 8 * buckets + 1):
        told = exchange.ask([float(world.rank)])
        if world.rank == 1 and number < 5:
            time.sleep(late_s)
        step(parallel, number)
        means, _ = told.wait()
        for one in exchange.measured():
            if one.cosine is not None:
                cosines[one.bucket] = one.cosine
        if 2 < number < 6:
            seconds.append(sum(one.exposed_s for one in exchange.measured()))
    sent = {way[2]: size for way, size in exchange.wire.take().items()}
    parallel.close()
    return {
        "buckets": buckets, "means": means, "cosines": cosines, "seconds": seconds, "sampled": sent.get("sample", 0),
        "late_s": late_s,
    }  # fmt: skip


def left_alone(world: World) -> str:
    """Rank 1 goes away between two steps, as a process that is killed; what the others' exchanges say."""
    connections = Connections()
    parallel = spread(world, f"dp_replicate={world.world_size}", Quirks(width=8), MICROBATCH, compress="int8")
    step(parallel, 1)
    connections.complete()
    exchange = parallel.exchange
    exchange.open(2)
    if world.rank == 1:
        connections.sever()
        exchange.close()
        return "gone"
    waiting = [exchange.begin(buffer.number, buffer.spec, torch.ones(buffer.spec.numel)) for buffer in exchange.buffers]
    exchange.announce(torch.tensor(1.0))
    try:
        for pending in waiting:
            pending.wait()
    except PeerLost:
        return "lost"
    finally:
        parallel.close()
    return "no error"


def shard_sums_mean(world: World) -> dict[str, Any]:
    """How far one coded sum, and the mean of 32, are from the true one; and what a NaN on one rank comes to."""
    made = torch.Generator().manual_seed(world.rank)
    given = torch.randn(2 * 3000, generator=made)
    true = given.clone()
    dist.all_reduce(true)
    mine = true.view(2, -1)[world.rank]
    group = dist.group.WORLD
    sums = ShardSums(INT8, seed=3)
    drawn: list[torch.Tensor] = []
    for number in range(1, 33):
        sums.open(number)
        drawn.append(sums.sum(0, given, group))
    sent = next(iter(sums.wire.take().values())) / 32
    if world.rank == 1:
        given[7] = float("nan")
    broken = sums.sum(0, given, group)
    return {
        "one": float((drawn[0] - mine).norm()),
        "mean": float((torch.stack(drawn).mean(0) - mine).norm()),
        "broken": "all nan" if bool(broken.isnan().all()) else "not told",
        "bytes": sent,
        "dense_bytes": given.nbytes / 2,
    }


def gathered(world: World, plan: str, **options: Any) -> dict[str, Any]:
    """A training, and what is left of the least of steps: shards are no multiples of a code's."""
    quirks = Quirks(tied=True, late=True, width=16)
    parallel = spread(world, plan, quirks, MICROBATCH, torch.float32, **options)
    first = {name: value.clone() for name, value in parallel.full_tensors()}
    step(parallel, 1)
    sent = {"/".join(way): size for way, size in parallel.sent().items() if way[2] == "int8 gather"}
    torch.optim.SGD(parallel.parameters(), lr=1e-5).step()
    moved = {name: float((value - first[name]).abs().max()) for name, value in parallel.full_tensors()}
    made = under_plan(parallel, MICROBATCH, 1.0, 8)
    parallel.close()
    digest = hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in first.values()))
    return {
        "losses": made.losses,
        "bits": made.bits(),
        "first": digest.hexdigest(),
        "least": min(moved.values()),
        "most": max(moved.values()),
        "sent": sent,
        "elements": sum(value.numel() for value in first.values()),
    }


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
