"""Spread a model over the ranks of a world by a plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn

from distroml.planner import Plan, PlanRefused, parse_wish
from distroml.runtime.elastic import Collectives, World
from distroml.runtime.elastic.world import choose_device
from distroml.runtime.parallel.compression import NO_COMPRESSION, Compression, Residuals, check_possible
from distroml.runtime.parallel.divide import Loss, Part, chain_for, divide
from distroml.runtime.parallel.idle import warn_of_idle
from distroml.runtime.parallel.mesh import Mesh
from distroml.runtime.parallel.model import ParallelModel
from distroml.runtime.parallel.plan import plan as make_plan
from distroml.runtime.parallel.precision import Precision, loss_in
from distroml.runtime.parallel.recompute import keep_all, recompute
from distroml.runtime.parallel.weights import LiveSource, WeightSource, materialise, pretrained, record
from distroml.runtime.typed import compile_in_place


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
    compress_shard: str = "none",
    compress_gather: str = "none",
    residuals: Residuals = "folded",
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
        compress: the scheme by which gradients are summed along dp_replicate, such as "int8" or "powersgd:4". Only
            `Trainer` has "auto": schemes are chosen by what its steps take.
        compress_shard: the same along dp_shard: "int8" or "int4".
        compress_gather: the code as which parameters are gathered along dp_shard: "int8".
        residuals: what `ParallelModel.kept` gives for checkpoints of what compression keeps: the sum over ranks, or
            "exact", each rank's own beside it.
        weights: safetensors to start from, a file or a folder; each rank reads its own part only.

    Raises:
        WeightsError: the weights cannot be read, or are not this model's.
        PlanRefused: the plan cannot be made, or not for this model; says why, and what is possible.
        ValueError: the model has no parameter to train, there is no such compression scheme or it is "auto", or the
            ranks want different ones.
        PeerLost: another rank is gone.
    """
    if isinstance(plan, str) and parse_wish(plan).tune_bucket:
        raise PlanRefused(
            "bucket_mb=auto is measured by Trainer, which knows the optimizer and the batch; give a size in MiB, or "
            "leave it out"
        )
    compression = Compression(compress, residuals, compress_shard, compress_gather)
    if compression.adapts:
        raise ValueError(
            "compress='auto' is not possible with parallelize: schemes are chosen by what steps of a Trainer take, and "
            "in a loop of your own nothing would be compressed; name a scheme, such as compress='int8', or train by "
            "Trainer(compress='auto')"
        )
    world = world or _world_of_process_group()
    source: WeightSource | None = None
    if not isinstance(model, nn.Module):
        model, source = record(model, seed)
    if weights is not None:
        source = pretrained(os.fspath(weights), model, source or LiveSource(model))
    chosen = choose_plan(
        model, plan or "", world, loss=loss, sample=sample, global_batch=global_batch, microbatch=microbatch
    )
    warn_of_idle(chosen, compression, world, set())
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
        compression=compression,
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
    compression: Compression = NO_COMPRESSION,
) -> ParallelModel:
    """`model` spread by a whole plan; see `parallelize`. With a `source` its own values are of no meaning.

    Where `compression` adapts, whoever calls it makes what chooses schemes (`training.controlling`).
    """
    if compiled and compression.gather != "none" and plan.dp_shard > 1:
        raise PlanRefused(
            f"compress_gather={compression.gather!r} is not possible with compiled blocks: leave it out, or do not "
            "compile (compiled=False)"
        )
    check_possible(plan, compression)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    whole = dict.fromkeys((name for name, _ in model.named_parameters()), True)
    mesh = Mesh(plan, world)
    if plan.world_size == plan.dp_replicate:
        keep_all(model)
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
    return ParallelModel(
        part, plan, mesh, loss=loss, names=names, seed=seed, precision=precision, compression=compression
    )
