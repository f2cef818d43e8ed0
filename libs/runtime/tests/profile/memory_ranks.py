"""What each rank of the pool does to measure a step's memory, and the model that it is measured on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from distroml.runtime.comm.algorithms import Choice, Timed
from distroml.runtime.compress.optim import DGC, CompressedOptimizer, OneBitAdam, OuterNesterov
from distroml.runtime.elastic import World
from distroml.runtime.parallel import Compression, ParallelModel, parallelize
from distroml.runtime.parallel.parallelize import choose_plan, spread
from libs.runtime.tests.profile import tracking

# So many samples that the peak lies in the passes, not in what the optimizer computes on the way.
WIDTH, SAMPLES = 64, 64


class Block(nn.Module):
    """A feed-forward layer around which its input is added."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One block."""
        return x + self.down(torch.relu(self.up(x)))


class Tower(nn.Module):
    """Blocks between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.last = nn.Linear(WIDTH, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All of it."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def batch(samples: int = SAMPLES) -> torch.Tensor:
    """One microbatch."""
    return torch.ones(samples, WIDTH)


def loss(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A sum of squares."""
    return model(x).square().sum(), len(x)


def one_bit(parameters: Iterable[nn.Parameter]) -> CompressedOptimizer:
    """1-bit Adam, whose second step is the first after its warm-up."""
    return OneBitAdam(parameters, lr=1e-3, warm_up_steps=1)


def dgc(parameters: Iterable[nn.Parameter]) -> CompressedOptimizer:
    """Deep gradient compression."""
    return DGC(parameters, lr=1e-3, warm_up_steps=8)


EXCHANGING = {"onebit": one_bit, "dgc": dgc}


def peak(
    world: World, plan: str, optimizer: str = "adamw", sync_every: int = 0, samples: int = SAMPLES, **options: str
) -> dict[str, int]:
    """Bytes of a step at its peak, as torch's trackers name them."""
    parallel = _spread(world, plan, sync_every, **options)
    moving: torch.optim.Optimizer
    if optimizer in EXCHANGING:
        moving = _exchanged(parallel, optimizer, options["compress"])
    else:
        moving = torch.optim.AdamW(parallel.parameters(), lr=1e-3, foreach=False)
    x = batch(samples)
    found = tracking.peak(parallel, moving, lambda number: _step(parallel, moving, x, number))
    parallel.close()
    return found


def _exchanged(parallel: ParallelModel, optimizer: str, compress: str) -> CompressedOptimizer:
    moving = EXCHANGING[optimizer](parallel.parameters())
    parallel.exchange_for(moving, Compression(compress), 0)
    return moving


def _step(parallel: ParallelModel, optimizer: torch.optim.Optimizer, x: torch.Tensor, number: int) -> None:
    done = parallel.forward_backward([x], number)
    if parallel.meetings is None:
        parallel.finish(done)
        optimizer.step()
    else:
        parallel.gradients.flush()
        optimizer.step()
        parallel.meetings.meet(number)


def _spread(world: World, plan: str, sync_every: int = 0, **options: str) -> ParallelModel:
    asked: dict[str, Any] = {"loss": loss, "sample": batch()}
    sizes = {"global_batch": SAMPLES * world.world_size, "microbatch": SAMPLES}
    if not sync_every:
        return parallelize(Tower, plan, world=world, **asked, **sizes, **options)
    model = Tower()
    return spread(
        model, choose_plan(model, plan, world, **asked, **sizes), world, **asked, seed=0, precision="fp32",
        compiled=False, compression=Compression(options.get("compress", "none"), outer=OuterNesterov(sync_every)),
    )  # fmt: skip


def kept(world: World, plan: str, schemes: list[str], hosts: str = "", layered: bool = False) -> list[dict[str, Any]]:
    """What compression by each scheme keeps after two steps, and what it sent in the second one, by level of links.

    Args:
        world: of the pool.
        plan: of all.
        schemes: to be tried.
        hosts: a letter for each rank, as if ranks ran on these; none: all on this one.
        layered: whether sums then go by a hierarchy of hosts.
    """
    found: list[dict[str, Any]] = []
    for scheme in schemes:
        parallel = _on_hosts(world, hosts, lambda scheme=scheme: _spread(world, plan, compress=scheme))
        exchange = parallel.exchange
        assert exchange is not None
        if hosts:
            assert exchange.sums is not None
            exchange.sums.choice = Choice((Timed(1, {"flat": 1.0, "hierarchical": 0.5 if layered else 2.0}),))
        for number in (1, 2):
            exchange.wire.take()
            parallel.finish(parallel.forward_backward([batch()], number))
        sent = {way[1]: size for way, size in exchange.wire.take().items() if way[2] == scheme}
        found.append({"state_bytes": exchange.state_bytes, "sent": sent})
        parallel.close()
    return found


def _on_hosts(world: World, hosts: str, make: Callable[[], ParallelModel]) -> ParallelModel:
    """Made as if ranks ran on these hosts."""
    if not hosts:
        return make()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"DISTROML_HOST": hosts[world.rank], "DISTROML_CACHE": folder}
        try:
            return make()
        finally:
            del os.environ["DISTROML_HOST"], os.environ["DISTROML_CACHE"]


def met(world: World, every: int, compress: str) -> dict[str, Any]:
    """What replicas that meet keep for it, and what they send in the steps from one meeting to the next."""
    parallel = _spread(world, "dp_replicate=2", every, compress=compress)
    exchange, meetings = parallel.exchange, parallel.meetings
    assert exchange is not None
    assert meetings is not None
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    for number in range(1, 2 * every + 1):
        if number == every + 1:
            exchange.wire.take()
        parallel.forward_backward([batch()], number)
        parallel.gradients.flush()
        optimizer.step()
        if meetings.outer.due(number):
            meetings.meet(number)
    sent = sum(size for way, size in exchange.wire.take().items() if way[2] == compress)
    outer = sum(one.nbytes for one in (*meetings.anchors().values(), *meetings.velocities().values()))
    inner = sum(one.nbytes for state in optimizer.state.values() for one in state.values() if one.dim())
    found = {"sent": sent, "state_bytes": exchange.state_bytes, "outer": outer, "inner": inner}
    parallel.close()
    return found


def momenta(world: World, compress: str, optimizer: str) -> dict[str, int]:
    """What exchanges keep for an optimizer whose ranks exchange momenta, and what that keeps itself."""
    parallel = _spread(world, "dp_replicate=2", compress=compress)
    moving = _exchanged(parallel, optimizer, compress)
    for number in (1, 2):
        _step(parallel, moving, batch(), number)
    assert parallel.exchange is not None
    inner = sum(one.nbytes for state in moving.state.values() for one in state.values())
    found = {"exchange": parallel.exchange.state_bytes, "optimizer": inner}
    parallel.close()
    return found
