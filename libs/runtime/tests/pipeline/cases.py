"""What each rank of the pool does for one test."""

import time
from functools import cache
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
from distroml.runtime.elastic import PeerLost
from distroml.runtime.parallel.pipeline import Pipeline, StageModule, trees

STEPS = 5
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


@cache
def reference(name: str, optimizer: str, steps: int, number: int) -> tuple[nn.Module, list[float]]:
    """One process, the same microbatches, the gradient of the mean over all terms: the same under every schedule."""
    recipe = models.model(name)
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
    named: dict[str, nn.Parameter] = {}
    for module in pipeline.modules:
        for here, parameter in module.named_parameters():
            named.setdefault(module.names[here], parameter)
    assert list(named) == pipeline.names
    held = list(named.values())
    optimizer = OPTIMIZERS[case["optimizer"]](held)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        mine = batches(recipe, step, number * sides)[side * number : (side + 1) * number]
        result = pipeline.forward_backward(mine)
        if case.get("tied", True):
            pipeline.sum_tied()
        total, count = everywhere(*result, group if sides == 1 else None)
        for parameter in held:
            if parameter.grad is not None:
                parameter.grad /= count
        optimizer.step()
        losses.append(total / count)
    done = time.perf_counter()
    model, expected = reference(case["model"], case["optimizer"], steps, number * sides)
    theirs = dict(model.named_parameters())
    apart = {
        name: difference(whole(parameter), theirs[name].detach()) for name, parameter in named.items() if not flat(name)
    }
    worst = max(apart, key=lambda name: apart[name])
    return {
        "loss": max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)),
        "parameter": apart[worst],
        "worst": worst,
        "proved": pipeline.proved,
        "seconds": [round(done - started, 2), round(time.perf_counter() - done, 2)],
    }


def flat(name: str) -> bool:
    """Biases whose true gradient is zero, as softmax does not see them: only rounding errors move them."""
    return name.endswith(("k_proj.bias", "key.bias", "k_lin.bias"))


def evaluate(case: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """Batches of two shapes without gradients, a step after it, and the model's own output."""
    recipe = models.model(case["model"])
    pipeline, model = cut(recipe, case, group), fresh(recipe)
    given = batches(recipe, 0, 5)
    given[2] = trees.map_leaves(lambda leaf: leaf[:1], given[2])
    for module in (model, *pipeline.modules):
        module.eval()
    total, count = everywhere(*pipeline.evaluate(given), group)
    with torch.no_grad():
        parts = [recipe.loss(model, batch) for batch in given]
    expected = float(sum(part for part, _ in parts)), float(sum(int(terms) for _, terms in parts))
    untouched = all(p.grad is None for module in pipeline.modules for p in module.parameters())
    model.train()
    for module in pipeline.modules:
        module.train()
    after, _ = everywhere(*pipeline.forward_backward(given[:2]), group)
    inputs = {name: value for name, value in given[0].items() if name != "labels"}
    with torch.no_grad():
        logits = model(**inputs).logits
    return {
        "loss": abs(total - expected[0]) / expected[0],
        "count": count - expected[1],
        "untouched": untouched,
        "after": abs(after - float(parts[0][0] + parts[1][0])) / after,
        "logits": difference(pipeline.forward(**inputs).logits, logits),
    }


def randomness(case: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """Dropout seeded by microbatch and stage: gradients under two schedules, and under another seed."""
    recipe = models.model(case["model"])
    calls: list[tuple[int, int]] = []

    def gradients(schedule: str, seed: int) -> dict[str, torch.Tensor]:
        pipeline = cut(recipe, {**case, "schedule": schedule}, group)
        calls.clear()

        def before(microbatch: int, stage: int) -> None:
            calls.append((microbatch, stage))
            torch.manual_seed(seed * 1000 + microbatch * 10 + stage)

        pipeline.forward_backward(batches(recipe, 0, 4), before)
        return {name: p.grad for module in pipeline.modules for name, p in module.named_parameters()}

    first, second, other = gradients("gpipe", 1), gradients("1f1b", 1), gradients("1f1b", 2)
    return {
        "same": max(difference(second[name], first[name]) for name in first),
        "other": max(difference(other[name], first[name]) for name in first),
        "calls": calls,
    }


def tied(case: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """One step's gradients of tied parameters, bit for bit."""
    recipe = models.model(case["model"])
    pipeline = cut(recipe, case, group)
    pipeline.forward_backward(batches(recipe, 0, 4))
    pipeline.sum_tied()
    return {
        "tied": pipeline.tied,
        "bits": {
            f"{name} {module.index}": p.grad.flatten().view(torch.int64).sum().item()
            for module in pipeline.modules
            for here, p in module.named_parameters()
            if p.grad is not None and (name := module.names[here]) in pipeline.tied
        },
    }


def meta(case: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """Cut without weights, then filled by name: the loss of the whole model, with this rank's part of the memory."""
    recipe = models.model(case["model"])
    whole_model = fresh(recipe)
    with torch.device("meta"):
        hollow = recipe.make().double()
    stages = stages_of(len(recipe.blocks), case["pp"])
    plan = Plan(pp=case["pp"], stages=stages, schedule=case["schedule"])
    given = batches(recipe, 0, 2)
    pipeline = Pipeline(hollow, recipe.loss, given[0], blocks=recipe.blocks, plan=plan, coordinate=dist.get_rank(group))
    state = dict(whole_model.state_dict(keep_vars=True)) | dict(whole_model.named_buffers())
    elements = 0
    for module in pipeline.modules:
        module.to_empty(device="cpu")
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            tensor.detach().copy_(state[module.names.get(name, name.removeprefix("model."))])
        elements += sum(parameter.numel() for parameter in module.parameters())
    pipeline.bind(group, torch.device("cpu"))
    total, _ = everywhere(*pipeline.forward_backward(given), group)
    expected = sum(float(recipe.loss(whole_model, batch)[0]) for batch in given)
    return {
        "loss": abs(total - expected) / expected,
        "share": elements / sum(parameter.numel() for parameter in whole_model.parameters()),
        "proved": pipeline.proved,
    }


def broken(case: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """The loss raises at one microbatch on the rank of the last stage; the process ends, as it would in a job."""
    recipe = models.model(case["model"])
    pipeline = cut(recipe, case, group)
    given = batches(recipe, 0, 4)
    pipeline.forward_backward(given)
    wrong = given[2].clone()
    wrong[0, -1] = 10_000  # no such class: the loss refuses it, the model before it never sees it
    given[2] = wrong
    started = time.perf_counter()
    try:
        pipeline.forward_backward(given)
    except Exception as error:
        return {
            "raised": type(error).__name__,
            "message": str(error),
            "seconds": time.perf_counter() - started,
            "leave": not isinstance(error, PeerLost),
        }
    return {"raised": None}
