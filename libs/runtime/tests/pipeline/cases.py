"""What each rank of the pool does for one test."""

import time
from typing import Any

import models
import torch
import torch.distributed as dist
from torch import nn

from distroml.planner import Plan
from distroml.runtime.parallel.pipeline import Pipeline

STEPS = 10
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
    pipeline.bind(group, torch.device("cpu"))
    return pipeline


def everywhere(total: torch.Tensor, count: torch.Tensor, group: dist.ProcessGroup) -> tuple[float, float]:
    both = torch.stack([total, count])
    dist.all_reduce(both, group=group)
    return float(both[0]), float(both[1])


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / (theirs.norm() + 1e-30))


def train(case: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """Some steps against one process: the largest differences of losses and parameters."""
    started = time.perf_counter()
    recipe, number, steps = models.model(case["model"]), case.get("microbatches", 4), case.get("steps", STEPS)
    pipeline = cut(recipe, case, group)
    held = [p for module in pipeline.modules for p in module.parameters()]
    optimizer = OPTIMIZERS[case["optimizer"]](held)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        result = pipeline.forward_backward(batches(recipe, step, number))
        pipeline.sum_tied()
        total, count = everywhere(*result, group)
        for parameter in held:
            if parameter.grad is not None:
                parameter.grad /= count
        optimizer.step()
        losses.append(total / count)
    done = time.perf_counter()
    model, expected = reference(recipe, case["optimizer"], steps, number)
    theirs = dict(model.named_parameters())
    apart = {
        name: difference(parameter.detach(), theirs[name].detach())
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
