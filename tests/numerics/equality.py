"""One architecture under one plan against one process: what each rank of the pool does."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

from distroml.runtime.elastic import World
from distroml.runtime.parallel import ParallelModel, PlanRefused, parallelize
from distroml.runtime.training.step import to_device
from tests.numerics.precision import Float64
from tests.numerics.reference import (
    GLOBAL_BATCH,
    SEED,
    STEPS,
    OptimizerName,
    Reference,
    make_optimizer,
    part_of,
    samples_of_step,
    seeded,
    train_alone,
)
from tests.numerics.zoo import BY_NAME, Architecture, loss

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def compare(
    world: World,
    name: str,
    plan: str,
    optimizer: OptimizerName,
    dtype: str,
    microbatch: int = 2,
    grad_clip: float | None = None,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Train under `plan` and, on rank 0, alone; how far they are apart.

    Returns:
        "refused" with the reason; or, on rank 0, "loss" (largest difference of any step), "parameter" (largest normwise
        difference of any tensor) with its "name", and "excepted": names with elements of zero true gradient.
    """
    architecture = BY_NAME[name]
    try:
        parallel = parallelize(
            seeded(architecture, _DTYPES[dtype]),
            plan,
            world=world,
            loss=loss,
            sample=architecture.batch(microbatch, seed=1),
            global_batch=GLOBAL_BATCH,
            microbatch=microbatch,
            seed=SEED,
        )
    except PlanRefused as error:
        return {"refused": str(error)}
    with _whole(dtype):
        losses, norms = _train(parallel, architecture, optimizer, microbatch, grad_clip, steps, world.device)
        found = dict(parallel.full_tensors())
    parallel.close()
    if not world.is_main:
        return {}
    right = _alone(name, optimizer, dtype, microbatch, grad_clip, steps)
    errors: dict[str, float] = {}
    for parameter, whole in right.parameters.items():
        difference = found[parameter] - whole
        if parameter in right.zero:
            difference = difference.masked_fill(right.zero[parameter], 0.0)
        errors[parameter] = float(difference.norm() / whole.norm().clamp_min(1e-30))
    worst = max(errors, key=lambda key: errors[key])
    return {
        "loss": max(abs(own - other) for own, other in zip(losses, right.losses, strict=True)),
        "norm": max(abs(own / other - 1) for own, other in zip(norms, right.norms, strict=True)),
        "parameter": errors[worst],
        "name": worst,
        "excepted": sorted(right.zero),
        "missing": sorted(set(right.parameters) ^ set(found)),
    }


def _whole(dtype: str) -> AbstractContextManager[object]:
    """Everything in float64 where that is the type, whatever a model asks for."""
    return Float64() if dtype == "float64" else nullcontext()


def _train(
    parallel: ParallelModel,
    architecture: Architecture,
    optimizer: OptimizerName,
    microbatch: int,
    grad_clip: float | None,
    steps: int,
    device: torch.device,
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of `steps` steps under the plan."""
    stepping = make_optimizer(optimizer, parallel.parameters())
    share = GLOBAL_BATCH // parallel.mesh.dp_size
    start = parallel.mesh.dp_rank * share
    losses: list[float] = []
    norms: list[float] = []
    for step in range(1, steps + 1):
        own = to_device(part_of(samples_of_step(architecture, step), start, start + share), device)
        batches = [part_of(own, first, first + microbatch) for first in range(0, share, microbatch)]
        mean, norm = parallel.finish(parallel.forward_backward(batches, step), grad_clip)
        losses.append(float(mean))
        norms.append(float(norm))
        stepping.step()
    return losses, norms


@cache
def _alone(
    name: str, optimizer: OptimizerName, dtype: str, microbatch: int, grad_clip: float | None, steps: int
) -> Reference:
    """What one process computes: the same for every plan, so that a process of the pool does it once."""
    architecture = BY_NAME[name]
    torch.manual_seed(SEED)
    twin = seeded(architecture, _DTYPES[dtype])()
    with _whole(dtype):
        return train_alone(twin, architecture, optimizer, microbatch=microbatch, grad_clip=grad_clip, steps=steps)
