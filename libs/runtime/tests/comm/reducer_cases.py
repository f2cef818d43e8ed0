"""Conformance cases of what trainings exchange gradients and parameters by, with compression.

They import most of the runtime, which takes ranks that are started for them alone some seconds.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from distroml.runtime.comm import sent_bytes
from distroml.runtime.comm.algorithms import Arrangement
from distroml.runtime.compress import SimulatedRanks, Turn, parse_scheme
from distroml.runtime.compress.schemes.seeds import seed_of
from distroml.runtime.parallel.buckets import BucketSpec, lay_out
from distroml.runtime.parallel.compressed import CompressedExchange
from distroml.runtime.parallel.culprits import NonFinite
from distroml.runtime.parallel.shardgathers import ShardGathers, Stretch, decode, encode
from distroml.runtime.parallel.shardsums import SHARD_CODECS, ShardSums
from libs.runtime.tests.comm.casebook import Casebook, same
from libs.runtime.tests.comm.exchange_cases import SCHEMES, SEED, alike, axis_of, kept_alike
from libs.runtime.tests.comm.round_cases import gradient, in_blocks

REDUCERS = Casebook()
of_at_least = REDUCERS.of_at_least

SHAPES = ({"first.weight": (24, 16), "first.bias": (7,)}, {"one.weight": (160, 192), "two.bias": (1000,)})


class Exchanging:
    """Steps of an exchange along all ranks; what each was to sum is `flats`, by bucket and rank."""

    def __init__(self, scheme: str, device: torch.device, **options: Any) -> None:
        self.axis = axis_of(device, "a" * dist.get_world_size())
        self.exchange = CompressedExchange(
            self.axis.group, parse_scheme(scheme), seed=SEED, device=device, sums=self.axis.sums, **options
        )
        self.specs: list[BucketSpec] = []
        for shapes in SHAPES:
            named = [(name, torch.nn.Parameter(torch.empty(shape, device=device))) for name, shape in shapes.items()]
            self.specs += lay_out(named, 16.0)
        self.exchange.prepare(dict(enumerate(self.specs)))

    def drawn(self, step: int) -> list[list[torch.Tensor]]:
        """Every rank's gradients of each bucket, their padding zero."""
        flats = [[torch.zeros(spec.numel) for _ in self.axis.ranks] for spec in self.specs]
        for spec, of_bucket in zip(self.specs, flats, strict=True):
            for rank, flat in enumerate(of_bucket):
                for one in spec.segments:
                    own = gradient(rank, 10 * step + one.index, one.numel)
                    flat[one.offset : one.offset + one.numel] = own
        return [[flat.to(spec.device) for flat in one] for spec, one in zip(self.specs, flats, strict=True)]

    def step(self, number: int, flats: list[torch.Tensor], unit: float = 20.0) -> None:
        """Exchange this rank's buckets, in place."""
        self.exchange.open(number)
        both = enumerate(zip(self.specs, flats, strict=True))
        under_way = [self.exchange.begin(bucket, spec, flat) for bucket, (spec, flat) in both]
        self.exchange.counted(torch.tensor(unit, device=flats[0].device))
        for pending in under_way:
            pending.wait()


@of_at_least(2)
def trainings_exchange_by_every_scheme(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for name in SCHEMES:
        exchanging, scheme = Exchanging(name, device), parse_scheme(name)
        exchange = exchanging.exchange
        alone = [
            SimulatedRanks(scheme, buffer.layout, ranks, SEED, device, buffer.number) for buffer in exchange.buffers
        ]
        for step in (1, 2):
            flats = exchanging.drawn(step)
            made = [of_bucket[rank].clone() for of_bucket in flats]
            exchanging.step(step, made, 20.0 + step)
            for buffer, got, of_bucket, simulated in zip(exchange.buffers, made, flats, alone, strict=True):
                simulated.exchange(of_bucket, 20.0 + step)
                exact = ranks == 2 and not (device.type == "cuda" and name.startswith("powersgd"))
                what = f"by {name} in bucket {buffer.number}, step {step}"
                alike(got, of_bucket[rank], exact, what)
                kept_alike(buffer.state, simulated.states[rank], exact, what)
        # Beside each exchange three numbers of float64 are summed, or they travel with its codes.
        early = sum(device.type == "cpu" and scheme.takes_back(one.layout, ranks) for one in alone)
        codes = sum(scheme.sent_bytes(one.layout, ranks) for one in alone) + early * sent_bytes("gather", 24, ranks)
        sent = {("dp_replicate", "node", scheme.name): 2 * codes}
        if early < len(alone):
            sent["dp_replicate", "node", "agreement"] = 2 * (len(alone) - early) * sent_bytes("sum", 24, ranks)
        assert exchange.wire.take() == sent, name
        exchange.close()


@of_at_least(2)
def what_adapts_sends_nothing_but_sums_while_it_compresses_nothing(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    exchanging = Exchanging("none", device, adapts=True)
    exchange = exchanging.exchange
    agreed = ("dp_replicate", "node", "agreement")
    # From step 2 on one of two is coded, in step 4 it tells what was kept, and after that it is plain again.
    for step, (scheme, agrees) in enumerate([("none", False), ("int8", True), ("int8", True), ("none", True)], 1):
        exchange.set_scheme(1, parse_scheme(scheme), step)
        flats = exchanging.drawn(step)
        made = [of_bucket[rank] for of_bucket in flats]
        wanted = flats[0][rank].clone()
        dist.all_reduce(wanted)
        exchanging.step(step, made)
        alike(made[0], wanted, ranks == 2, f"the plain bucket in step {step}")
        assert exchange.wire.take().get(agreed, 0) == (2 * sent_bytes("sum", 24, ranks) if agrees else 0)
    exchanging.step(5, [of_bucket[rank] for of_bucket in exchanging.drawn(5)])
    sums = sum(sent_bytes("sum", 4 * spec.numel, ranks) for spec in exchanging.specs)
    assert exchange.wire.take() == {("dp_replicate", "node", "none"): sums}
    exchange.close()


@of_at_least(2)
def a_gradient_that_is_no_number_is_told_of_and_kept_by_nobody(device: torch.device) -> None:
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    exchanging = Exchanging("int8", device)
    exchange = exchanging.exchange
    exchanging.step(1, [of_bucket[rank] for of_bucket in exchanging.drawn(1)])
    assert not exchange.non_finite
    before = exchange.buffers[1].kept()
    first, second = (of_bucket[rank] for of_bucket in exchanging.drawn(2))
    if rank == last:
        bias = next(one for one in exchanging.specs[1].segments if one.name == "two.bias")
        second[bias.offset + 3] = torch.nan
    exchanging.step(2, [first, second])
    assert bool(first.isfinite().all())
    assert all(bool(second[one.offset : one.offset + one.numel].isnan().all()) for one in exchanging.specs[1].segments)
    assert exchange.non_finite == (NonFinite(last, "two.bias", 2),)
    # Ranks that had coded theirs take that back, but for rounding.
    moved = (exchange.buffers[1].kept() - before).norm()
    assert moved == 0 if rank == last else moved < 1e-5 * before.norm()
    exchange.close()


@of_at_least(2)
def ranks_ask_one_another_and_look_at_samples(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    exchanging = Exchanging("bf16", device, adapts=True)
    asked = exchanging.exchange.ask([float(rank), 2.0], probe_bytes=4096)
    exchanging.exchange.set_sampled(1)
    exchanging.step(8, [of_bucket[rank] for of_bucket in exchanging.drawn(1)])
    least, probed_s = asked.wait()
    assert least == [0.0, 2.0]
    assert probed_s > 0
    assert asked.probed_bytes == sent_bytes("sum", 4096, ranks)
    first, second = (one.cosine for one in exchanging.exchange.measured())
    assert first is None
    assert second is not None
    assert 0.999 < second < 1.001
    exchanging.exchange.close()


# ---- codes along dp_shard


def shards_on(ranks: int) -> Arrangement:
    return Arrangement.of(range(ranks), in_blocks(ranks) if ranks >= 4 else "a" * ranks)


@of_at_least(2)
def coded_sums_of_shards(device: torch.device) -> None:
    group, rank, ranks = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    assert group is not None
    arrangement = shards_on(ranks)
    for name, codec in SHARD_CODECS.items():
        sums = ShardSums(codec, SEED, arrangement)
        sent: Counter[tuple[str, str, str]] = Counter()
        for step in (1, 2):
            sums.open(step)
            # A unit may be summed more than once in a step.
            for unit, turn, numel in ((0, 1, 301), (1, 1, 9000), (1, 2, 9000)):
                given = [gradient(r, 10 * step + turn, ranks * numel).to(device) for r in range(ranks)]
                got = sums.sum(unit, given[rank], group, [("weight", numel)])
                wanted, size = torch.zeros(numel, device=device), codec.size(numel)
                for sender in range(ranks):
                    code = torch.zeros(size, dtype=torch.uint8, device=device)
                    seed = seed_of(Turn(sender, ranks, step, unit, SEED, 1.0), turn, sender, rank)
                    codec.encode(given[sender].view(ranks, -1)[rank], None, 1.0, seed, code)
                    codec.add(code, wanted)
                same(got, wanted, f"by {name}, unit {unit}, step {step}")
                # Eight bytes before each code, and its end at a multiple of eight.
                for level, bytes_ in arrangement.sent("scatter", ranks * (8 + -(-size // 8) * 8), rank).items():
                    sent["dp_shard", level, name] += bytes_
        assert sums.wire.take() == sent, name
        spoilt = gradient(rank, 3, ranks * 301).to(device)
        if rank == ranks - 1:
            spoilt[5] = torch.nan  # of rank 0's part
        assert bool(sums.sum(0, spoilt, group, [("bias", 4), ("weight", 297)]).isnan().all())
        assert sums.non_finite == (NonFinite(ranks - 1, "weight", 2),)


@of_at_least(2)
def coded_gathers_of_shards(device: torch.device) -> None:
    group, rank, ranks = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    assert group is not None
    arrangement = shards_on(ranks)
    stretches = [Stretch(0, 700, coded=True), Stretch(700, 5, coded=False), Stretch(705, 9000, coded=True)]
    for dtype in (torch.float32, torch.bfloat16):
        given = [gradient(r, 1, 9705).to(dtype).to(device) for r in range(ranks)]
        gathers = ShardGathers(ranks, arrangement)
        codes = torch.stack([encode(one, stretches) for one in given])
        wanted = torch.empty(ranks, 9705, dtype=dtype, device=device)
        decode(codes, stretches, wanted)
        same(gathers.gather(given[rank], stretches, group), wanted)
        levels = arrangement.sent("gather", codes[rank].nbytes, rank)
        assert gathers.wire.take() == {("dp_shard", level, "int8 gather"): size for level, size in levels.items()}
