"""Conformance cases of what is built of collectives: rounds, moves, and sums over hosts."""

from __future__ import annotations

import functools
import os
from unittest import mock

import torch
import torch.distributed as dist

from distroml.runtime.comm import sent_bytes
from distroml.runtime.comm.algorithms import Chosen, all_reduce_along
from distroml.runtime.comm.moves import ring_gather, swap, trade
from distroml.runtime.comm.rounds import Peers
from distroml.runtime.compress import How, Round
from distroml.runtime.elastic import World
from libs.runtime.tests.comm.casebook import SIZES, Casebook, of, same, total

ROUNDS = Casebook()
case, of_at_least = ROUNDS.case, ROUNDS.of_at_least

# More than any back end sends at once.
LONG = 70_001


@case
def rounds_bring_what_they_promise(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    peers = Peers(dist.group.WORLD)

    def made(how: How, own: torch.Tensor) -> torch.Tensor:
        answer = peers.make(Round(how, own))
        assert peers.take().total() == sent_bytes(how, own.nbytes, ranks), (how, own.shape)
        return answer

    for dtype in (torch.uint8, torch.int64, torch.bfloat16, torch.float32):
        for size in (*SIZES, LONG):
            whole = torch.stack([of(r, ranks * size, dtype, device) for r in range(ranks)])
            same(made("gather", whole[rank]), whole)
            # Into a place that has this rank's part already.
            into = torch.zeros_like(whole)
            into[rank] = whole[rank]
            assert peers.make(Round("gather", into[rank], into=into)) is into
            assert peers.take().total() == sent_bytes("gather", into[rank].nbytes, ranks)
            same(into, whole)
            # Of which that part is written while others' are on their way.
            into = torch.zeros_like(whole)
            late = Round("gather", into[rank], into, functools.partial(into[rank].copy_, whole[rank]))
            same(peers.make(late), whole)
            assert peers.take().total() == sent_bytes("gather", into[rank].nbytes, ranks)
            same(made("scatter", whole[rank]), whole.view(ranks, ranks, size)[:, rank])
            if dtype.is_floating_point:
                same(made("sum", whole[rank].clone()), total(ranks * size, dtype, device=device))


@of_at_least(2)
def moves_in_both_directions_at_once(device: torch.device) -> None:
    if device.type == "cuda":
        return  # there rounds are the back end's own collectives
    group, rank, ranks = dist.group.WORLD, dist.get_rank(), dist.get_world_size()
    assert group is not None
    for dtype in (torch.uint8, torch.float32):
        for size in (*SIZES[1:], LONG):
            got = torch.empty(ranks, size, dtype=dtype)
            ring_gather(got, of(rank, size, dtype), group)
            same(got, torch.stack([of(r, size, dtype) for r in range(ranks)]))
            whole = torch.stack([of(r, ranks * size, dtype).view(ranks, size) for r in range(ranks)])
            swap(got, whole[rank], group)
            same(got, whole[:, rank])

    def length(source: int, target: int) -> int:
        return (source + 2 * target) % 3 * LONG  # of three pairs one has nothing to tell

    others = [peer for peer in range(ranks) if peer != rank]
    received = [(peer, torch.empty(length(peer, rank))) for peer in others]
    trade(received, [(peer, of(rank, length(rank, peer))) for peer in others], group)
    for peer, tensor in received:
        same(tensor, of(peer, length(peer, rank)))


# ---- sums over hosts


@of_at_least(4)
def sums_over_hosts_by_every_way(device: torch.device) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for hosts in (in_blocks(ranks), interleaved(ranks)):
        chosen = sums_along(device, hosts)
        # A back end for GPUs knows its topology.
        assert sorted(chosen.ways) == (["flat"] if device.type == "cuda" else ["flat", "hierarchical"])
        for way in chosen.ways.values():
            kinds = [(n, dtype) for n in (*SIZES, LONG) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
            tensors = [of(rank, n, dtype, device) for n, dtype in kinds]
            # All are under way at once.
            for pending in [way.start(tensor) for tensor in tensors]:
                pending.wait()
            for (n, dtype), tensor in zip(kinds, tensors, strict=True):
                same(tensor, total(n, dtype, device=device), way.name)
            # As a plain sum and what ranks agree on beside it.
            peers = Peers(dist.group.WORLD, way)
            few, many = of(rank, 4, torch.float64, device), of(rank, LONG, device=device)
            for pending in [peers.tell(few), peers.start(many)]:
                pending.wait()
            same(few, total(4, torch.float64, device=device), way.name)
            same(many, total(LONG, device=device), way.name)
            drawn = [gradient(r, 0, LONG) for r in range(ranks)]
            own = drawn[rank].clone().to(device)
            way.sum(own)
            near(own.cpu(), torch.stack(drawn).double().sum(0).float(), way.name)
            for other in Peers(dist.group.WORLD).make(Round("gather", own)):
                same(other, own, "on another rank")


def sums_along(device: torch.device, hosts: str, group: dist.ProcessGroup | None = None) -> Chosen:
    """Sums over `group`, or all ranks, as if each ran on a host of one letter of `hosts`. Every rank calls it."""
    rank = dist.get_rank()
    world = World(generation=1, rank=rank, world_size=len(hosts), local_rank=rank, device=device, store=None, prefix="")
    along = group or dist.group.WORLD
    assert along is not None
    with mock.patch.dict(os.environ, {"DISTROML_HOST": hosts[rank]}):
        return all_reduce_along(world, along, budget_s=0.01)


def in_blocks(ranks: int) -> str:
    """The first half of the ranks on one host, the second on another."""
    return "".join("ab"[2 * rank // ranks] for rank in range(ranks))


def interleaved(ranks: int) -> str:
    """Every other rank on the same host."""
    return "".join("ab"[rank % 2] for rank in range(ranks))


def gradient(rank: int, number: int, numel: int) -> torch.Tensor:
    """Numbers of many sizes."""
    source = torch.Generator().manual_seed(1000 * number + rank)
    return torch.randn(numel, generator=source) * torch.randn(numel, generator=source).exp()


def near(got: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    """Sums of more than two numbers in another order differ in the last bits, of 2^-24 each.

    What follows of such a sum may differ by more: PowerSGD makes columns orthogonal, and goes on from there in the next
    step.
    """
    assert got.shape == wanted.shape, (got.shape, wanted.shape, what)
    off = float((got - wanted).abs().max()) if wanted.numel() else 0.0
    assert off <= 1e-5 * float(wanted.abs().max() if wanted.numel() else 0.0), f"off by {off} {what}"
