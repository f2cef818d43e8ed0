"""What each rank of the pool does for one test."""

import time
from typing import Any

import models
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from distroml.planner import Plan
from distroml.runtime.parallel.pipeline import Pipeline, StageModule

STEPS = 10
MESHES: list[dist.DeviceMesh] = []
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=False),
}


def fresh(recipe: models.Model) -> nn.Module:
    torch.manual_seed(0)
    return recipe.make().double()


def batches(recipe: models.Model, step: int, number: int) -> list[Any]:
    return [recipe.batch(torch.Generator().manual_seed(1000 * step + i)) for i in range(number)]


def reference(recipe: models.Model, optimizer: str, steps: int, number: int) -> tuple[nn.Module, list[float]]:
    """One process, the same microbatches, the gradient of the mean over all terms."""
    model, losses = fresh(recipe), []
    made = OPTIMIZERS[optimizer](model.parameters())
    for step in range(steps):
        made.zero_grad()
        total, count = torch.zeros(()), 0
        for batch in batches(recipe, step, number):
            loss, terms = recipe.loss(model, batch)
            loss.backward()
            total, count = total + loss.detach(), count + int(terms)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad /= count
        made.step()
        losses.append(float(total) / count)
    return model, losses


def stages_of(blocks: int, stages: int) -> tuple[int, ...]:
    """As equal as can be, the first ones larger."""
    return tuple(blocks // stages + (stage < blocks % stages) for stage in range(stages))


def cut(recipe: models.Model, case: dict[str, Any], group: dist.ProcessGroup) -> Pipeline:
    pp, chunks = case["pp"], case.get("chunks", 1)
    stages = case.get("stages") or stages_of(len(recipe.blocks), pp * chunks)
    plan = Plan(pp=pp, stages=tuple(stages), schedule=case["schedule"])
    sample = batches(recipe, 0, 1)[0]
    pipeline = Pipeline(
        fresh(recipe), recipe.loss, sample, blocks=recipe.blocks, plan=plan, coordinate=dist.get_rank(group)
    )
    if "wrap" in case:
        WRAP[case["wrap"]](pipeline, recipe)
    pipeline.bind(group, torch.device("cpu"))
    return pipeline


def everywhere(total: torch.Tensor, count: torch.Tensor, group: dist.ProcessGroup) -> tuple[float, float]:
    both = torch.stack([total, count])
    dist.all_reduce(both, group=group)
    return float(both[0]), float(both[1])


def whole(parameter: torch.Tensor) -> torch.Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / (theirs.norm() + 1e-30))


def mesh() -> dist.DeviceMesh:
    """Four ranks: pipelines of two, side by side. Made once."""
    if not MESHES:
        MESHES.append(dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("side", "pp")))
    return MESHES[0]


def shard(pipeline: Pipeline, recipe: models.Model) -> None:
    """`fully_shard` as the engine applies it: own blocks, then the rest of the stage; sums instead of means."""
    for module in pipeline.modules:
        for path in own_blocks(module, recipe):
            fully_shard(module.model.get_submodule(path), mesh=mesh()["side"])
        fully_shard(module, mesh=mesh()["side"])
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)


def split(pipeline: Pipeline, recipe: models.Model) -> None:
    """Tensor parallelism inside of Llama's blocks."""
    plan = {
        **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
        **{f"mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")},
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    for module in pipeline.modules:
        for path in own_blocks(module, recipe):
            parallelize_module(module.model.get_submodule(path), mesh()["side"], plan)


def checkpoint(pipeline: Pipeline, recipe: models.Model) -> None:
    for module in pipeline.modules:
        for path in own_blocks(module, recipe):
            parent, _, name = path.rpartition(".")
            block = module.model.get_submodule(path)
            setattr(module.model.get_submodule(parent), name, checkpoint_wrapper(block))


def compiled(pipeline: Pipeline, recipe: models.Model) -> None:
    for module in pipeline.modules:
        for path in own_blocks(module, recipe):
            module.model.get_submodule(path).compile(backend="aot_eager")


def own_blocks(module: StageModule, recipe: models.Model) -> list[str]:
    return [path for path in recipe.blocks if list(module.model.get_submodule(path).parameters())]


WRAP = {"shard": shard, "split": split, "checkpoint": checkpoint, "compile": compiled}


def train(case: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """Some steps against one process: the largest differences of losses and parameters."""
    started = time.perf_counter()
    recipe, number, steps = models.model(case["model"]), case.get("microbatches", 4), case.get("steps", STEPS)
    pipeline = cut(recipe, case, group)
    sides = 2 if case.get("wrap") == "shard" else 1  # data-parallel ranks
    side = dist.get_rank() // 2 if sides == 2 else 0
    held = [p for module in pipeline.modules for p in module.parameters()]
    optimizer = OPTIMIZERS[case["optimizer"]](held)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        mine = batches(recipe, step, number * sides)[side * number : (side + 1) * number]
        result = pipeline.forward_backward(mine)
        pipeline.sum_tied()
        total, count = everywhere(*result, group if sides == 1 else None)
        for parameter in held:
            if parameter.grad is not None:
                parameter.grad /= count
        optimizer.step()
        losses.append(total / count)
    done = time.perf_counter()
    model, expected = reference(recipe, case["optimizer"], steps, number * sides)
    theirs = dict(model.named_parameters())
    apart = {
        name: difference(whole(parameter), theirs[name].detach())
        for module in pipeline.modules
        for (here, parameter) in module.named_parameters()
        for name in [module.names[here]]
        if case["optimizer"] == "sgd" or not flat(name)
    }
    worst = max(apart, key=lambda name: apart[name])
    return {
        "loss": max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)),
        "parameter": apart[worst],
        "worst": worst,
        "names": pipeline.names,
        "seconds": [round(done - started, 2), round(time.perf_counter() - done, 2)],
    }


def flat(name: str) -> bool:
    """Biases whose true gradient is zero: softmax does not see them, and Adam scales rounding errors up."""
    return name.endswith(("k_proj.bias", "key.bias", "k_lin.bias"))
