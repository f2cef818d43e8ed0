"""Measures links, sums and compression schemes on live ranks: `python -m distroml.runtime.profile.communication`.

Every rank of a job runs it; rank 0 writes the report as JSON to standard output, and what it is at to standard error.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import cast

import msgspec
import torch
import torch.distributed as dist

from distroml.runtime.comm.algorithms import Chosen, all_reduce_along
from distroml.runtime.comm.algorithms.arrangement import host_name
from distroml.runtime.comm.report import DENSE, CommReport, LinkRate, SchemeCost, SumTime
from distroml.runtime.comm.rounds import Peers, drive
from distroml.runtime.compress import Layout, Piece, Scheme, Turn
from distroml.runtime.compress.parse import parse_scheme
from distroml.runtime.elastic import Collectives, Membership, World
from distroml.runtime.link import process_link
from distroml.runtime.profile.probe import probe_links

_REPEATS = 3
# As in a transformer: matrices of 1 MiB, each with a bias.
_MATRIX, _BIAS = (1024, 256), (256,)


def measure(world: World, schemes: Sequence[str], megabytes: float, told: Callable[[str], None]) -> CommReport:
    """Measure all. Collective; the report is equal on every rank.

    Args:
        world: of two ranks or more.
        schemes: names as users write them.
        megabytes: of the gradients that are exchanged, in MiB.
        told: is called with what comes next.

    Raises:
        UnknownScheme: one of the names is none.
        PeerLost: another rank is gone.
    """
    parsed = [parse_scheme(name) for name in dict.fromkeys((DENSE, *schemes))]
    collectives = Collectives(world)
    told("links")
    links = probe_links(world)
    rates = tuple(
        LinkRate(level, one.collective, one.ranks, one.bytes, one.seconds)
        for level, samples in links.samples.items()
        for one in samples
    )
    told("sums")
    layout = _layout(megabytes)
    whole = cast("dist.ProcessGroup", dist.group.WORLD)
    chosen = all_reduce_along(world, whole)
    sums = _sums(collectives, chosen, layout.numel * 4)
    peers = Peers(whole, chosen, chosen.arrangement)
    costs: list[SchemeCost] = []
    for scheme in parsed:
        told(f"scheme {scheme.name}")
        costs.append(_cost(collectives, peers, scheme, layout))
    return CommReport(
        world_size=world.world_size,
        hosts=tuple(collectives.gather(host_name())),
        backend=world.backend,
        buffer_bytes=layout.numel * 4,
        links=rates,
        sums=tuple(sums),
        schemes=tuple(costs),
    )


def _layout(megabytes: float) -> Layout:
    pieces: list[Piece] = []
    numel = 0
    while not pieces or numel * 4 < megabytes * (1 << 20):
        for shape in (_MATRIX, _BIAS):
            pieces.append(Piece(f"piece{len(pieces)}", numel, shape))
            numel += pieces[-1].numel
    return Layout(numel, tuple(pieces))


def _sums(collectives: Collectives, chosen: Chosen, most_bytes: int) -> list[SumTime]:
    world = collectives.world
    found: list[SumTime] = []
    # One between, unless that is about as large as the largest.
    for size_bytes in sorted({64 << 10, 1 << 20 if most_bytes > 3 << 19 else most_bytes, most_bytes}):
        tensor = torch.zeros(size_bytes // 4, device=world.device)
        for name, way in chosen.ways.items():

            def once(tensor: torch.Tensor = tensor, start: Callable[..., object] = way.start) -> None:
                cast("dist.Work", start(tensor)).wait()
                _settle(world)

            seconds = _slowest(collectives, [_time(collectives, once) for _ in range(_REPEATS + 1)][1:])
            picked = chosen.choice.pick(size_bytes) == name
            found.append(SumTime(name, size_bytes, seconds, dict(way.sent_bytes(size_bytes)), picked))
    return found


def _cost(collectives: Collectives, peers: Peers, scheme: Scheme, layout: Layout) -> SchemeCost:
    world = collectives.world
    state = scheme.prepare(layout, world.world_size, world.device)
    generator = torch.Generator().manual_seed(world.rank)
    gradient = torch.randn(layout.numel, generator=generator).to(world.device)
    wholes: list[float] = []
    works: list[float] = []
    rounds = 0
    for step in range(1, _REPEATS + 2):
        turn = Turn(world.rank, world.world_size, step, 0, 0, float(world.world_size), finite=True)
        # Equal at the start, so that the time counts no other rank's delay.
        collectives.sum(torch.zeros(1, device=world.device))
        started = time.perf_counter()
        steps_of = scheme.rounds(gradient.clone(), layout, state, turn)
        driven = drive(steps_of, peers.make, lambda: _settle(world))
        wholes.append(time.perf_counter() - started)
        works.append(driven.computing_s)
        rounds = driven.rounds
    # The first one warms caches and makes what lasts.
    work, whole = (_slowest(collectives, seconds[1:]) for seconds in (works, wholes))
    return SchemeCost(scheme.name, scheme.sent_bytes(layout, world.world_size), work, whole, rounds)


def _time(collectives: Collectives, call: Callable[[], object]) -> float:
    collectives.sum(torch.zeros(1, device=collectives.world.device))
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _slowest(collectives: Collectives, seconds: Sequence[float]) -> float:
    """The median of the rank that takes longest."""
    return max(collectives.gather(statistics.median(seconds)))


def _settle(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def _end_with_input() -> None:
    # From the descriptor: a thread that waits inside of `sys.stdin` would keep the interpreter from ending.
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> int:
    """Measure in this process's world, as the environment has it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemes", nargs="*", default=[])
    parser.add_argument("--megabytes", type=float, required=True)
    parser.add_argument("--device", default=None)
    parser.add_argument("--attached", action="store_true", help="end with standard input: with whoever started this")
    asked = parser.parse_args()
    if asked.attached:
        threading.Thread(target=_end_with_input, daemon=True).start()
    membership = Membership(process_link(), os.environ, device=asked.device)
    world = membership.enter()
    try:

        def told(what: str) -> None:
            if world.is_main:
                print(what, file=sys.stderr, flush=True)

        report = measure(world, asked.schemes, asked.megabytes, told)
        if world.is_main:
            print(msgspec.json.encode(report).decode(), flush=True)
    finally:
        membership.close()
    return 0


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is said. Taking every object apart takes longer, and threads of torch may get in its way.
    os._exit(ended)
