"""What each rank of the pool does to measure a step's memory, and the model that it is measured on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker

from distroml.runtime.elastic import World
from distroml.runtime.parallel import ParallelModel, parallelize

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


def batch() -> torch.Tensor:
    """One microbatch."""
    return torch.ones(SAMPLES, WIDTH)


def loss(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """A sum of squares."""
    return model(x).square().sum(), len(x)


def peak(world: World, plan: str, **options: str) -> dict[str, int]:
    """Bytes of the second step at its peak, as torch's trackers name them.

    They see one thread: exchanges are made there, each at the moment at which it begins.
    """
    parallel = _spread(world, plan, **options)
    exchange = parallel.exchange
    if exchange is not None:
        exchange._lane.begin = lambda job: job.do(None)
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3, foreach=False)
    x = batch()

    def step(number: int) -> None:
        parallel.finish(parallel.forward_backward([x], number))
        optimizer.step()

    step(1)
    if parallel.plan.dp_shard > 1:
        tracker: MemTracker = FSDPMemTracker(parallel.module, optimizer)
    else:
        tracker = MemTracker()
        tracker.track_external(parallel.module, optimizer, *parallel.gradients.flats)
    for buffer in exchange.buffers if exchange is not None else ():
        state = buffer.state
        lasting = (state.residual, state.owned, *state.extra.values())
        tracker.track_external(*(one for one in lasting if one is not None))
    with tracker:
        step(2)
    snapshot = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    parallel.close()
    return {str(getattr(kind, "value", kind)): size for kind, size in snapshot.items()}


def _spread(world: World, plan: str, **options: str) -> ParallelModel:
    return parallelize(
        Tower,
        plan,
        world=world,
        loss=loss,
        sample=batch(),
        global_batch=SAMPLES * world.world_size,
        microbatch=SAMPLES,
        **options,
    )


def kept(world: World, plan: str, schemes: list[str]) -> list[dict[str, Any]]:
    """What compression by each scheme keeps after two steps, and what it sent in the second one."""
    found: list[dict[str, Any]] = []
    for scheme in schemes:
        parallel = _spread(world, plan, compress=scheme)
        assert parallel.exchange is not None
        for number in (1, 2):
            parallel.exchange.wire.take()
            parallel.finish(parallel.forward_backward([batch()], number))
        sent = {way[2]: size for way, size in parallel.exchange.wire.take().items()}
        found.append({"state_bytes": parallel.exchange.state_bytes, "sent": sent.get(scheme, 0)})
        parallel.close()
    return found
