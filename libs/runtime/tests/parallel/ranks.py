"""What each rank of the pool does for one test: train under a plan and, on rank 0, alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from distroml.runtime.elastic import World
from distroml.runtime.parallel import Compression, ParallelModel, PlanRefused, parallelize
from distroml.runtime.parallel.parallelize import choose_plan
from distroml.runtime.parallel.parallelize import spread as spread_by
from distroml.runtime.parallel.weights import record
from libs.runtime.tests.parallel.models import Batch, Quirks, loss, make, samples

SEED = 5
STEPS = 6
GLOBAL_BATCH = 8


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    # Decay and momentum move what has a gradient of zero, and leave alone what has none.
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.05)


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """Samples `[start, stop)`."""
    return {name: value[start:stop] for name, value in batch.items()}


def pieces(batch: Batch, start: int, stop: int, microbatch: int) -> Iterator[Batch]:
    """Samples `[start, stop)` as microbatches."""
    for first in range(start, stop, microbatch):
        yield part_of(batch, first, min(stop, first + microbatch))


@dataclass(slots=True)
class Course:
    """What a training came to."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    parameters: dict[str, torch.Tensor] = field(default_factory=dict)

    def bits(self) -> str:
        """A hash of every bit of it."""
        digest = hashlib.sha256(repr((self.losses, self.norms)).encode())
        for name, value in self.parameters.items():
            digest.update(name.encode() + value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def spread(
    world: World, plan: str, quirks: Quirks, microbatch: int, dtype: torch.dtype = torch.float64, **options: Any
) -> ParallelModel:
    """The model under `plan`."""
    sample = part_of(samples(GLOBAL_BATCH, 1), 0, microbatch)
    sizes: dict[str, Any] = {"global_batch": GLOBAL_BATCH, "microbatch": microbatch}
    if options.get("compress") != "auto":
        return parallelize(
            lambda: make(quirks, dtype), plan, world=world, loss=loss, sample=sample, seed=SEED, **sizes, **options
        )
    # As `Trainer` does, which alone has "auto". Here the test chooses.
    model, source = record(lambda: make(quirks, dtype), SEED)
    chosen = choose_plan(model, plan, world, loss=loss, sample=sample, **sizes)
    return spread_by(
        model,
        chosen,
        world,
        loss=loss,
        sample=sample,
        seed=SEED,
        precision="fp32",
        compiled=False,
        source=source,
        compression=Compression("auto"),
    )


def under_plan(parallel: ParallelModel, microbatch: int, grad_clip: float | None, steps: int = STEPS) -> Course:
    """Train; every rank takes its data-parallel share of each step's samples."""
    course = Course()
    optimizer = _sgd(parallel.parameters())
    share = GLOBAL_BATCH // parallel.mesh.dp_size
    start = parallel.mesh.dp_rank * share
    for step in range(1, steps + 1):
        batches = list(pieces(samples(GLOBAL_BATCH, 100 + step), start, start + share, microbatch))
        mean, norm = parallel.finish(parallel.forward_backward(batches, step), grad_clip)
        course.losses.append(float(mean))
        course.norms.append(float(norm))
        optimizer.step()
    course.parameters.update({name: value.clone() for name, value in parallel.full_tensors()})
    return course


@cache
def alone(quirks: Quirks, microbatch: int, grad_clip: float | None, steps: int = STEPS) -> Course:
    """The same in plain PyTorch, with the same microbatches: what it came to is the same under every plan."""
    torch.manual_seed(SEED)
    model, course = make(quirks), Course()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _sgd(trained)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        total, count = torch.zeros((), dtype=torch.float64), 0
        for batch in pieces(samples(GLOBAL_BATCH, 100 + step), 0, GLOBAL_BATCH, microbatch):
            one, terms = loss(model, batch)
            one.backward()
            total, count = total + one.detach(), count + int(terms)
        for parameter in trained:
            if parameter.grad is not None:
                parameter.grad /= count
        course.losses.append(float(total) / count)
        course.norms.append(float(nn.utils.clip_grad_norm_(trained, grad_clip or float("inf"))))
        optimizer.step()
    course.parameters.update({name: value.detach().clone() for name, value in model.named_parameters()})
    return course


def train(
    world: World,
    plan: str,
    quirks: dict[str, Any],
    microbatch: int = 2,
    grad_clip: float | None = None,
    against: bool = True,
    dtype: str = "float64",
    **options: Any,
) -> dict[str, Any]:
    """Train under `plan`.

    Returns:
        "refused" with the reason; or "bits" of losses, norms and parameters as this rank has them, and on rank 0 with
        `against` how far they are from training alone in float64: "loss", "norm", "parameter" (normwise, of the worst).
    """
    made = Quirks(**quirks)
    try:
        parallel = spread(world, plan, made, microbatch, getattr(torch, dtype), **options)
    except PlanRefused as error:
        return {"refused": str(error)}
    course = under_plan(parallel, microbatch, grad_clip)
    parallel.close()
    answer: dict[str, Any] = {"bits": course.bits()}
    if world.is_main and against:
        answer |= _errors(course, alone(made, microbatch, grad_clip))
    return answer


def _errors(course: Course, right: Course) -> dict[str, Any]:
    """How far a training is from another: "loss", "norm", "parameter" (normwise, of the worst) and its "name"."""
    assert sorted(course.parameters) == sorted(right.parameters)
    errors = {
        name: float((course.parameters[name] - value).norm() / value.norm().clamp_min(1e-30))
        for name, value in right.parameters.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    return {
        "loss": max(abs(own / one - 1) for own, one in zip(course.losses, right.losses, strict=True)),
        "norm": max(abs(own / one - 1) for own, one in zip(course.norms, right.norms, strict=True)),
        "name": worst,
        "parameter": errors[worst],
    }


def on_hosts(world: World, hosts: str, way: str, cache: str) -> dict[str, Any]:
    """Train whole copies as if rank i were on host `hosts[i]`, all sums by one algorithm; errors as of `train`."""
    os.environ |= {"DISTROML_HOST": hosts[world.rank], "DISTROML_CACHE": cache}
    try:
        parallel = spread(world, f"dp_replicate={world.world_size}", Quirks(tied=True), 1)
    finally:
        del os.environ["DISTROML_HOST"], os.environ["DISTROML_CACHE"]
    assert parallel.sums is not None
    ways = parallel.sums.ways
    ways.update(dict.fromkeys(ways, ways[way]))
    course = under_plan(parallel, 1, 1.0)
    parallel.close()
    return {"bits": course.bits(), **(_errors(course, alone(Quirks(tied=True), 1, 1.0)) if world.is_main else {})}


def statistics(world: World, plan: str) -> dict[str, Any]:
    """How far running statistics are from the average of those of lone models, one for each share of the samples."""
    quirks = Quirks(batch_norm=True)
    parallel = spread(world, plan, quirks, 2)
    dp_size = parallel.mesh.dp_size
    shares = [
        list(pieces(samples(GLOBAL_BATCH, 9), start, start + GLOBAL_BATCH // dp_size, 2))
        for start in range(0, GLOBAL_BATCH, GLOBAL_BATCH // dp_size)
    ]
    parallel.forward_backward(shares[parallel.mesh.dp_rank], 1)
    parallel.average_buffers()
    right: dict[str, torch.Tensor] = {}
    for share in shares:
        torch.manual_seed(SEED)
        lone = make(quirks)
        for batch in share:
            loss(lone, batch)
        for name, value in lone.named_buffers():
            right[name] = right.get(name, 0.0) + value / dp_size
    state = parallel.part.state.state_dict()
    mine = {f"blocks.{name.split('blocks.')[1].split('.')[0]}" for name, _ in parallel.part.held if "blocks." in name}
    held = [name for name in right if name.rsplit(".norm.", 1)[0] in mine]
    parallel.close()
    return {"held": len(held), "error": max(float((state[name] - right[name]).abs().max()) for name in held)}
