"""Spread a model over the ranks of a world by a plan."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from distroml.runtime.elastic import Collectives, World
from distroml.runtime.elastic.world import choose_device
from distroml.runtime.parallel.plan import Plan
from distroml.runtime.parallel.plan import plan as make_plan
from distroml.runtime.parallel.reducer import GradientReducer, SumExchange

COMPRESSIONS = ("none",)


def _world_of_process_group() -> World:
    there = dist.is_initialized()
    return World(
        generation=0,
        rank=dist.get_rank() if there else 0,
        world_size=dist.get_world_size() if there else 1,
        local_rank=0,
        device=choose_device(0, "cpu"),
        store=None,
        prefix="",
    )


class ParallelModel:
    """A model, the plan it is spread by, and its gradient reducer. Calling it runs the model's forward pass.

    Outside of `Trainer` a step is `begin()`, backward passes of **summed** losses (with `last_backward()` before the
    last), `finish(count)`, then the optimizer's step.
    """

    def __init__(self, module: nn.Module, chosen: Plan, collectives: Collectives) -> None:
        self.module = module
        self.plan = chosen
        self.collectives = collectives
        self.gradients = GradientReducer(
            list(module.named_parameters()), SumExchange(collectives), bucket_mb=chosen.bucket_mb
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        return self.module(*args, **kwargs)

    def begin(self) -> None:
        """A new step."""
        self.gradients.begin()

    def last_backward(self) -> None:
        """The next backward pass is this step's last: sums start while it runs."""
        self.gradients.last = True

    def finish(self, count: int | torch.Tensor) -> torch.Tensor:
        """Make gradients the global sum over the global count; returns that count.

        Args:
            count: how many terms this rank's losses summed; 0 where it had no microbatch.
        """
        total = torch.as_tensor(count, dtype=torch.float64, device=self.collectives.world.device).clone().reshape(1)
        pending = self.collectives.sum_async(total)
        self.gradients.flush()
        pending.wait()
        self.gradients.wait()
        self.gradients.scale(1.0 / total[0])
        return total[0]

    def synchronise(self) -> None:
        """Give every rank rank 0's parameters and buffers: the start of a run."""
        tensors = [tensor.detach() for tensor in (*self.module.parameters(), *self.module.buffers())]
        self.collectives.broadcast(tensors)

    def average_buffers(self) -> None:
        """Average running statistics over the replicas; other buffers become rank 0's.

        Statistics are exponential averages, so that averaging them now and then gives what averaging after every
        step would.
        """
        if self.plan.dp_replicate == 1:
            return
        averaged: set[int] = set()
        for module in self.module.modules():
            if isinstance(module, _NormBase) and module.track_running_stats:
                for statistic in (module.running_mean, module.running_var):
                    if statistic is not None:
                        averaged.add(id(statistic))
                        self.collectives.sum(statistic).div_(self.plan.dp_replicate)
        self.collectives.broadcast([buffer for buffer in self.module.buffers() if id(buffer) not in averaged])

    def close(self) -> None:
        """Take the hooks off the model."""
        self.gradients.close()


def check_compression(name: str) -> None:
    """Refuse a compression scheme that is not there."""
    if name not in COMPRESSIONS:
        raise ValueError(f"compress={name!r} is not available in this release; available: {', '.join(COMPRESSIONS)}")


def parallelize(
    model: nn.Module,
    plan: str | Plan = "auto",
    *,
    world: World | None = None,
    global_batch: int | None = None,
    microbatch: int | None = None,
    compress: str = "none",
) -> ParallelModel:
    """Spread `model` over the ranks of `world` (default: those of the default process group).

    Raises:
        PlanRefused: the plan cannot be made; says what is available.
        ValueError: the model has no parameter to train, or the compression scheme is not there.
    """
    check_compression(compress)
    world = world or _world_of_process_group()
    chosen = make_plan(
        plan,
        world_size=world.world_size,
        global_batch=global_batch,
        microbatch=microbatch,
        parameter_bytes=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
    )
    return ParallelModel(model, chosen, Collectives(world))
