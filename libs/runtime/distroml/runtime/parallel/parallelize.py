"""Spread a model over the ranks of a world by a plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from distroml.planner import Plan
from distroml.runtime.elastic import Collectives, World, communication
from distroml.runtime.elastic.world import choose_device
from distroml.runtime.parallel.divide import Loss, Part, chain_for, divide
from distroml.runtime.parallel.gathering import whole_of
from distroml.runtime.parallel.gradients import DividedGradients, Gradients, local_of
from distroml.runtime.parallel.loss import check_loss
from distroml.runtime.parallel.mesh import Mesh
from distroml.runtime.parallel.plan import plan as make_plan
from distroml.runtime.parallel.precision import Precision, computing_in, loss_in
from distroml.runtime.parallel.randomness import seed_pass
from distroml.runtime.parallel.recompute import recompute
from distroml.runtime.parallel.reducer import GradientReducer, SumExchange
from distroml.runtime.parallel.weights import LiveSource, WeightSource, materialise, pretrained, record
from distroml.runtime.typed import backward, compile_in_place

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
    """A model spread by a plan. Calling it runs the whole model's forward pass, on all ranks together.

    Outside of `Trainer` a step is `forward_backward(microbatches, step)`, `finish(done)`, then the optimizer's step;
    under plans that only replicate, a loop of one's own may instead use `begin()`, backward passes of **summed**
    losses (with `last_backward()` before the last), `finish((loss, count))`.

    Attributes:
        module: what a loss function is called with.
        plan: how it is spread.
        mesh: the plan's axes.
        gradients: of the current step.
    """

    def __init__(
        self,
        part: Part,
        plan: Plan,
        mesh: Mesh,
        *,
        loss: Loss | None,
        names: Sequence[str],
        seed: int,
        precision: Precision,
    ) -> None:
        self.module = part.module
        self.plan = plan
        self.mesh = mesh
        self.part = part
        self.collectives = Collectives(mesh.world)
        self._loss = loss
        self._seed = seed
        self._precision: Precision = precision
        trainable = [(name, parameter) for name, parameter in part.held if parameter.requires_grad]
        self._plain = plan.world_size == plan.dp_replicate
        self.gradients: Gradients
        if self._plain:
            exchange = SumExchange(self.collectives)
            self.gradients = GradientReducer(trainable, exchange, bucket_mb=plan.bucket_mb)
        else:
            self.gradients = DividedGradients(
                trainable,
                mesh,
                names=names,
                counted=part.counted,
                bucket_mb=plan.bucket_mb,
                reached=part.reached,
                sum_tied=part.pipeline.sum_tied if part.pipeline is not None else None,
                partial=part.split.summed if part.split is not None else (),
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        with self.precision():
            return self.module(*args, **kwargs)

    def precision(self) -> AbstractContextManager[Any]:
        """Within it, forward passes compute in the wanted precision; parameters and gradients stay as they are."""
        return computing_in(self._precision, self.mesh.world.device.type)

    def parameters(self) -> list[nn.Parameter]:
        """This rank's trainable parameters, for an optimizer."""
        return [parameter for _, parameter in self.part.held if parameter.requires_grad]

    def local_tensors(self) -> list[tuple[str, torch.Tensor]]:
        """This rank's part of each parameter, by name."""
        return [(name, local_of(parameter.detach())) for name, parameter in self.part.held]

    def begin(self) -> None:
        """A new step."""
        self.gradients.begin()

    def last_backward(self) -> None:
        """The next backward pass is this step's last: sums start while it runs."""
        self.gradients.last = True

    def forward_backward(self, batches: Sequence[Any], step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward passes over this rank's microbatches of one step. Collective under most plans.

        Returns:
            The sum of losses and the count of their terms, float64; zeros on ranks whose samples another rank of
            their tp and pp axes tells of.

        Raises:
            PeerLost: another rank is gone.
            TypeError: the loss is no sum and count.
        """
        self.gradients.begin()
        device = self.mesh.world.device
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        count = torch.zeros((), dtype=torch.float64, device=device)
        dp_rank = self.mesh.dp_rank

        def seed(microbatch: int, stage: int) -> None:
            seed_pass(self._seed, step, dp_rank, microbatch, stage)

        if self.part.pipeline is not None:
            loss_sum, count = self.part.pipeline.forward_backward(batches, seed)
        else:
            if self._loss is None:
                raise ValueError("forward_backward needs a loss function: pass loss= to parallelize")
            for number, batch in enumerate(batches):
                seed(number, 0)
                with self.precision():
                    total, terms = check_loss(self._loss(self.module, batch))
                self.gradients.last = number == len(batches) - 1
                backward(total)
                loss_sum += total.detach()
                count += terms
        if not self.mesh.tells_loss:
            return torch.zeros_like(loss_sum), torch.zeros_like(count)
        return loss_sum, count

    def finish(
        self, done: tuple[torch.Tensor, torch.Tensor | int], grad_clip: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make gradients the global sum over the global count, with a norm of at most `grad_clip`.

        Returns:
            The global mean loss, and the gradient's norm before clipping.
        """
        device = self.mesh.world.device
        totals = torch.stack([torch.as_tensor(one, dtype=torch.float64, device=device).detach() for one in done])
        fired = self.gradients.flush()
        tail = torch.tensor([float(reached) for reached in fired], dtype=torch.float64, device=device)
        votes = torch.cat([totals, tail])
        pending = self.collectives.sum_async(votes)
        pending.wait()
        self.gradients.wait()
        self.gradients.drop_unused([bool(votes[2 + place] > 0) for place in range(len(fired))])
        scale = 1.0 / votes[1]
        norm = self.gradients.norm().double() * scale
        if grad_clip is not None:
            scale = scale * torch.clamp(grad_clip / (norm + 1e-6), max=1.0)
        self.gradients.scale(scale)
        return votes[0] / votes[1], norm

    def measure(
        self, batch: Any, loss: Loss | None = None, name: str = "loss"
    ) -> tuple[torch.Tensor | int, torch.Tensor | int]:
        """Sum and count of a loss over one batch, without gradients; zeros on ranks that don't tell. Collective.

        Args:
            batch: on the device.
            loss: another than the model's own.
            name: of it, one for each.
        """
        loss = loss or self._loss
        if loss is None:
            raise ValueError("measure needs a loss function: pass loss= here or to parallelize")
        with torch.no_grad(), self.precision():
            if self.part.pipeline is not None:
                found = self.part.pipeline.evaluate([batch], loss, name)
            else:
                found = check_loss(loss(self.module, batch))
        return found if self.mesh.tells_loss else (0, 0)

    def synchronise(self) -> None:
        """Give every rank rank 0's parameters and buffers: the start of a run that only replicates."""
        tensors = [tensor.detach() for tensor in (*self.module.parameters(), *self.module.buffers())]
        self.collectives.broadcast(tensors)

    def average_buffers(self) -> None:
        """Average running statistics over the data-parallel ranks; where all hold all, other buffers become rank 0's.

        Statistics are exponential averages, so that averaging them now and then gives what averaging after every
        step would.
        """
        if self.plan.dp == 1:
            return
        averaged: set[int] = set()
        for module in (inner for root in self.part.roots for inner in root.modules()):
            if isinstance(module, _NormBase) and module.track_running_stats:
                for statistic in (module.running_mean, module.running_var):
                    if statistic is not None and id(statistic) not in averaged:
                        averaged.add(id(statistic))
                        self._average(statistic)
        if self._plain:
            self.collectives.broadcast([buffer for buffer in self.module.buffers() if id(buffer) not in averaged])

    def _average(self, statistic: torch.Tensor) -> None:
        for axis in ("dp_replicate", "dp_shard"):
            group = self.mesh.group(axis)
            if group is not None:
                with communication():
                    dist.all_reduce(statistic, group=group)
        statistic.div_(self.plan.dp)

    def full_tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        """Every parameter of the whole model, one at a time, on the CPU of every rank. Collective."""
        mine = dict(self.part.held)
        for name in self.part.counted:
            yield name, whole_of(name, mine.get(name), self.part, self.mesh)

    def close(self) -> None:
        """Take the hooks off the model."""
        self.gradients.close()


def check_compression(name: str) -> None:
    """Refuse a compression scheme that is not there."""
    if name not in COMPRESSIONS:
        raise ValueError(f"compress={name!r} is not available in this release; available: {', '.join(COMPRESSIONS)}")


def parallelize(
    model: nn.Module | Callable[[], nn.Module],
    plan: str | Plan | None = None,
    *,
    world: World | None = None,
    loss: Loss | None = None,
    sample: Any = None,
    global_batch: int | None = None,
    microbatch: int | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    compiled: bool = False,
    compress: str = "none",
    weights: str | os.PathLike[str] | None = None,
) -> ParallelModel:
    """Spread `model` over the ranks of `world` (default: those of the default process group). Collective.

    Args:
        model: a module, alike on all ranks, or what makes one; called with torch's generator seeded by `seed`. Under a
            plan that divides it, a module that is handed over is taken apart.
        plan: a `Plan`, or what is known of one ("dp_shard=2,tp=2"); None: whole copies. Plans are searched by
            `Trainer(plan="auto")`, which knows the optimizer and the batch.
        world: this process's place.
        loss: `(model, batch) -> (sum of losses, count)`.
        sample: one microbatch as a loader gives it, on the CPU; needed where blocks have to be found.
        global_batch: samples of a step, over all ranks.
        microbatch: samples of one forward pass.
        seed: of first weights and of all random numbers in a pass.
        precision: "bf16" computes forward and backward passes in bfloat16 where torch's autocast says so.
        compiled: compile each block.
        compress: compression of gradients.
        weights: safetensors to start from, a file or a folder; each rank reads its own part only.

    Raises:
        WeightsError: the weights cannot be read, or are not this model's.
        PlanRefused: the plan cannot be made, or not for this model; says why, and what is possible.
        ValueError: the model has no parameter to train, or the compression scheme is not there.
        PeerLost: another rank is gone.
    """
    check_compression(compress)
    world = world or _world_of_process_group()
    source: WeightSource | None = None
    if not isinstance(model, nn.Module):
        model, source = record(model, seed)
    if weights is not None:
        source = pretrained(os.fspath(weights), model, source or LiveSource(model))
    chosen = choose_plan(
        model, plan or "", world, loss=loss, sample=sample, global_batch=global_batch, microbatch=microbatch
    )
    return spread(
        model,
        chosen,
        world,
        loss=loss,
        sample=sample,
        seed=seed,
        precision=precision,
        compiled=compiled,
        source=source,
    )


def choose_plan(
    model: nn.Module,
    plan: str | Plan,
    world: World,
    *,
    loss: Loss | None,
    sample: Any,
    global_batch: int | None,
    microbatch: int | None,
) -> Plan:
    """The whole plan, from what is known of it; see `parallelize`."""

    def count_blocks() -> int:
        return len(chain_for("pp", model, loss, sample).blocks)

    return make_plan(
        plan,
        world_size=world.world_size,
        global_batch=global_batch,
        microbatch=microbatch,
        parameter_bytes=sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        blocks=count_blocks,
    )


def spread(
    model: nn.Module,
    plan: Plan,
    world: World,
    *,
    loss: Loss | None,
    sample: Any,
    seed: int,
    precision: Precision,
    compiled: bool,
    source: WeightSource | None = None,
) -> ParallelModel:
    """`model` spread by a whole plan; see `parallelize`. With a `source` its own values are of no meaning."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    whole = dict.fromkeys((name for name, _ in model.named_parameters()), True)
    mesh = Mesh(plan, world)
    if plan.world_size == plan.dp_replicate:
        if plan.recompute != "none" or compiled:
            chain = chain_for(f"the plan {plan}", model, loss, sample).modules(model)
            recompute(chain, plan.recompute)
            for block in chain if compiled else ():
                compile_in_place(block)
        if source is not None:
            materialise(model, source, device=world.device)
        model.to(world.device)
        part = Part(model, [model], list(model.named_parameters()), whole)
    else:
        if source is None:
            model.to(world.device)
            tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
            Collectives(world).broadcast(tensors)
        own_loss = loss if loss is None else loss_in(precision, world.device.type, loss)
        part = divide(model, plan, mesh, own_loss, sample, compiled=compiled, source=source)
    return ParallelModel(part, plan, mesh, loss=loss, names=names, seed=seed, precision=precision)
