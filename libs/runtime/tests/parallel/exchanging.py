"""What each rank of the pool does in tests of compressed exchanges: steps, with what came in and out looked at."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from distroml.runtime.compress.codecs import INT8
from distroml.runtime.compress.control import Record
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import Pending, World
from distroml.runtime.link import NullLink
from distroml.runtime.parallel import ParallelModel
from distroml.runtime.parallel.buckets import BucketSpec, Segment
from distroml.runtime.parallel.buffers import Took
from distroml.runtime.parallel.shardsums import ShardSums
from distroml.runtime.training.controlling import adapting_of
from libs.runtime.tests.parallel.models import Quirks, samples
from libs.runtime.tests.parallel.ranks import GLOBAL_BATCH, pieces, spread, under_plan
from libs.runtime.tests.scripts.reported_link import FAST_S_PER_BYTE, SLOW_S_PER_BYTE, reported

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

    def begin(self, number: int, spec: BucketSpec, flat: torch.Tensor, unreached: Sequence[Segment] = ()) -> Any:
        self.begun += 1
        self.went_in[number] = flat.double()
        pending = self._begin(number, spec, flat, unreached)
        return _Then(pending, lambda: self.came_out.__setitem__(number, flat.double()))

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


class Told:
    """Holds the steps of a compressed training to what is promised: what is told and what is kept are all there was."""

    def __init__(self, parallel: ParallelModel) -> None:
        self.exchange = parallel.exchange
        self.watch = Watch(parallel)
        self.kept = {buffer.number: torch.zeros(buffer.spec.numel) for buffer in self.exchange.buffers}
        self.kept |= self.exchange.fold()

    def gap(self, number: int) -> float:
        """After step `number`: of sum + kept * terms to what was to be told, relative to that; the worst bucket's."""
        worst, after = 0.0, self.exchange.fold()
        for bucket, true in self.watch.true_sums().items():
            kept = after.get(bucket, torch.zeros_like(self.kept[bucket])).double()
            wanted = true + self.kept[bucket].double() * terms(number)
            found = self.watch.came_out[bucket] + kept * terms(number)
            worst = max(worst, float((found - wanted).norm() / wanted.norm().clamp_min(1e-6)))
            self.kept[bucket] = kept
        return worst


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
    told = Told(parallel)
    if then is not None:
        for buffer in exchange.buffers:
            exchange.set_scheme(buffer.number, parse_scheme(then), from_step=3)
    worst = 0.0
    for number in range(1, steps + 1):
        step(parallel, number)
        worst = max(worst, told.gap(number))
    measured = exchange.measured()
    parallel.close()
    return {
        "gap": worst,
        "kept": float(torch.cat(list(told.kept.values())).norm()),
        "schemes": sorted({one.scheme for one in measured}),
        "exchanges": told.watch.begun / len(exchange.buffers),
        "gradient_norms": [one.gradient_norm for one in measured],
        "bytes": sum(exchange.wire.take().values()),
        "state_bytes": exchange.state_bytes,
        "elements": sum(buffer.spec.numel for buffer in exchange.buffers),
    }


def course(
    world: World, plan: str, steps: int, dtype: str = "float32", *, timed: bool = False, **options: Any
) -> dict[str, Any]:
    """A training's losses and bits, as this rank has them; `timed`: exchanges begin together on all ranks."""
    quirks = Quirks(tied=True, late=True, width=8)
    parallel = spread(world, plan, quirks, MICROBATCH, getattr(torch, dtype), **options)
    if parallel.exchange is not None:
        parallel.exchange.set_timed(timed)
    made = under_plan(parallel, MICROBATCH, 1.0, steps)
    agreed = sum(size for way, size in (parallel.sent() or {}).items() if way[2] == "agreement")
    parallel.close()
    return {"losses": made.losses, "bits": made.bits(), "agreed": agreed}


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


def in_order(world: World, plan: str, **options: Any) -> dict[str, Any]:
    """What happens in a step after the first one: "begin 3", "over 3", "first layer", "norm", in their order.

    Returns:
        "events"; "late": buckets that are said to begin when the passes are over; "buckets" in all.
    """
    parallel = spread(world, f"{plan},bucket_mb=0.0005", Quirks(width=8), MICROBATCH, torch.float32, **options)
    step(parallel, 1)
    events: list[str] = []
    source, name = (parallel.sums, "start") if parallel.exchange is None else (parallel.exchange, "begin")
    begin, norm = getattr(source, name), parallel.gradients.norm

    def noted(*given: Any) -> Any:
        # A plain sum has no number: they are counted.
        number = given[0] if len(given) > 1 else sum(event.startswith("begin") for event in events)
        events.append(f"begin {number}")
        return _Then(begin(*given), lambda: events.append(f"over {number}"))

    def measured() -> torch.Tensor:
        events.append("norm")
        return norm()

    def entered(layer: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        output.register_hook(lambda _: events.append("first layer"))

    setattr(source, name, noted)
    parallel.gradients.norm = measured
    layers = [one for root in parallel.part.roots for path, one in root.named_modules() if path.endswith("blocks.0.up")]
    handles = [layer.register_forward_hook(entered) for layer in layers]
    step(parallel, 2)
    for handle in handles:
        handle.remove()
    starts = parallel.gradients.starts
    parallel.close()
    return {
        "events": events,
        "late": [start.number for start in starts if start.late],
        "order": [start.number for start in starts],
    }


def asked(world: World) -> dict[str, Any]:
    """Steps in which ranks tell one another what exchanges took, rank 1 late in some; each has a sample of one bucket.

    Returns:
        "took": seconds of all buckets together, of each late step.
    """
    plan = f"dp_replicate={world.world_size},bucket_mb=0.001"
    parallel = spread(world, plan, Quirks(width=8), MICROBATCH, torch.float32, compress="auto")
    exchange = parallel.exchange
    for buffer in exchange.buffers:
        exchange.set_scheme(buffer.number, parse_scheme("int8"), from_step=1)
    buckets, cosines, took, late_s = len(exchange.buffers), {}, [], 1.0
    for number in range(1, max(buckets, 6) + 1):
        exchange.set_sampled(exchange.buffers[number % buckets].number)
        told = exchange.ask([float(world.rank)])
        if world.rank == 1 and number < 5:
            time.sleep(late_s)
        step(parallel, number)
        least, _ = told.wait()
        for one in exchange.measured():
            if one.cosine is not None:
                cosines[one.bucket] = one.cosine
        if 2 < number < 6:
            together = zip(*(one.took.seconds for one in exchange.measured()), strict=True)
            took.append(asdict(Took(*map(sum, together))))
    sent = {way[2]: size for way, size in exchange.wire.take().items()}
    parallel.close()
    return {
        "buckets": buckets, "least": least, "cosines": cosines, "took": took, "sampled": sent.get("sample", 0),
        "late_s": late_s,
    }  # fmt: skip


class _NoRecord:
    """A record that keeps nothing."""

    def read(self) -> Record:
        return Record()

    def write(self, record: Record) -> None:
        pass


def adapted(world: World, plan: str) -> dict[str, Any]:
    """Steps under the controller, where the first place of the plan has a slow link and all others fast ones.

    Returns:
        "schemes" by which the last step went; "held": a hash of each parameter on this rank.
    """
    parallel = spread(world, plan, Quirks(tied=True, width=8), MICROBATCH, torch.float32, compress="auto")
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    first = not any(at for axis, at in parallel.plan.coordinate(world.rank).items() if axis != "dp_replicate")
    with reported({0: SLOW_S_PER_BYTE if first else FAST_S_PER_BYTE}):
        adapting = adapting_of(parallel, NullLink(), world, {}, _NoRecord())
        adapting.start(0, "", lambda: 1e-3)
        for number in range(1, 5):
            adapting.begin(number)
            step(parallel, number)
            optimizer.step()
            adapting.end(number)
            adapting.note(1e-3, 1.0)
        schemes = sorted({one.scheme for one in parallel.exchange.measured()})
    held = {name: hashlib.sha256(own.numpy().tobytes()).hexdigest() for name, own in parallel.local_tensors()}
    parallel.close()
    return {"schemes": schemes, "held": held}


def shard_sums_mean(world: World) -> dict[str, Any]:
    """How far one coded sum, and the mean of 32, are from the true one; and what a NaN on one rank comes to."""
    made = torch.Generator().manual_seed(world.rank)
    given = torch.randn(2 * 3000, generator=made)
    true = given.clone()
    dist.all_reduce(true)
    mine = true.view(2, -1)[world.rank]
    group = dist.group.WORLD
    sums, lies = ShardSums(INT8, seed=3), [("embed.weight", 5), ("head.weight", 2995)]
    drawn: list[torch.Tensor] = []
    for number in range(1, 33):
        sums.open(number)
        drawn.append(sums.sum(0, given, group, lies))
    sent = next(iter(sums.wire.take().values())) / 32
    if world.rank == 1:
        given[7] = float("nan")
    broken = sums.sum(0, given, group, lies)
    return {
        "one": float((drawn[0] - mine).norm()),
        "mean": float((torch.stack(drawn).mean(0) - mine).norm()),
        "broken": "all nan" if bool(broken.isnan().all()) else "not told",
        "told": [str(one) for one in sums.non_finite],
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
