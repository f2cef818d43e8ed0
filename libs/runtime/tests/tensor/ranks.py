"""What the ranks of a world do for the tests of tensor parallelism."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from distroml.runtime.elastic import World
from distroml.runtime.parallel import PlanRefused, parallelize
from distroml.runtime.parallel.recompute import recompute
from distroml.runtime.parallel.tensor import NoTensorPlan, TensorPlan, apply_tensor_plan, choose_tensor_plan
from distroml.runtime.profile import find_chain
from libs.runtime.tests.tensor.zoo import BY_NAME, loss, made
from tests.numerics.precision import Float64


def train(world: World, name: str, steps: int = 5) -> dict[str, Any]:
    """Train split over all ranks, and alone; how far losses and first gradients are apart.

    Returns:
        "refused" with a reason; or "loss", the largest difference of any step; "gradient", the largest normwise one of
        the first step, with its "name"; "bits", whether what all ranks hold is the same on all of them at the end;
        "split" and "whole", numbers of modules.
    """
    sample = BY_NAME[name].batch(2, seed=1)
    blocks = find_chain(made(name), lambda one: loss(one, sample)).blocks
    try:
        plan = choose_tensor_plan(made(name), blocks, loss, sample, world.world_size)
    except NoTensorPlan as error:
        return {"refused": str(error)}
    with Float64():
        alone = list(_steps(made(name), name, steps, None))
        model = made(name)
        apply_tensor_plan(model, plan, init_device_mesh("cpu", (world.world_size,), mesh_dim_names=("tp",)))
        split = list(_steps(model, name, steps, plan))
    gradients = {key: _difference(split[0][1][key], alone[0][1][key], alone[0][1]) for key in alone[0][1]}
    worst = max(gradients, key=lambda key: gradients[key])
    return {
        "loss": max(abs(own[0] - right[0]) for own, right in zip(split, alone, strict=True)),
        "gradient": gradients[worst],
        "name": worst,
        "bits": _fingerprint(model),
        "split": len(plan.modules),
        "whole": sorted(plan.whole),
    }


def _steps(
    model: nn.Module, name: str, steps: int, plan: TensorPlan | None
) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=False)
    for step in range(steps):
        optimizer.zero_grad()
        total, count = loss(model, BY_NAME[name].batch(2, seed=10 + step))
        (total / count).backward()
        yield float(total) / count, dict(_gradients(model, plan)) if step == 0 else {}
        for key, parameter in model.named_parameters():
            if plan is not None and key in plan.summed and step > 0 and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
        optimizer.step()


def _gradients(model: nn.Module, plan: TensorPlan | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole gradients; those that are to be summed over the ranks are."""
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            yield name, torch.zeros(())
            continue
        if plan is not None and name in plan.summed:
            dist.all_reduce(gradient)
        layout = plan.layout(name) if plan is not None else None
        full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        yield name, (full if layout is None or plan is None else layout.restore(full, plan.degree)).clone()


def _difference(own: torch.Tensor, right: torch.Tensor, all_right: dict[str, torch.Tensor]) -> float:
    """Normwise; a gradient that is zero but for rounding is measured against the others."""
    floor = 1e-3 * max(float(gradient.norm()) for gradient in all_right.values())
    return float((own - right).norm()) / max(float(right.norm()), floor)


def _fingerprint(model: nn.Module) -> str:
    """Of the bits of every parameter that each rank holds in whole."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not isinstance(parameter, DTensor):
            digest.update(name.encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def evaluate(world: World, name: str, sequence: bool = False) -> dict[str, Any]:
    """How far outputs without gradients are apart, and whether generated text is the same where the model generates."""
    sample = BY_NAME[name].batch(2, seed=1)
    alone, model = made(name).eval(), made(name)
    blocks = find_chain(model, lambda one: loss(one, sample)).blocks
    plan = choose_tensor_plan(model, blocks, loss, sample, world.world_size, sequence=sequence)
    apply_tensor_plan(model, plan, init_device_mesh("cpu", (world.world_size,)))
    model.eval()
    with torch.no_grad():
        own, right = float(loss(model, sample)[0]), float(loss(alone, sample)[0])
        prompt = {"input_ids": sample["input_ids"][:, :4], "max_new_tokens": 6, "do_sample": False}
        texts = [one.generate(**prompt).tolist() if hasattr(one, "generate") else [] for one in (model, alone)]
    return {"loss": abs(own - right) / abs(right), "same": texts[0] == texts[1], "length": len(texts[0])}


def train_example(world: World, plan: str, steps: int = 5) -> dict[str, float]:
    """Train the example GPT under `plan` and alone; largest differences of losses, and of parameters normwise."""
    batch = BY_NAME["example_gpt"].batch
    whole = [batch(8, seed=10 + step) for step in range(steps)]
    parallel = parallelize(
        lambda: made("example_gpt"), plan, world=world, loss=loss, sample=batch(2, seed=1), global_batch=8, microbatch=2
    )
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    share = 8 // parallel.mesh.dp_size
    first = parallel.mesh.dp_rank * share
    own: list[float] = []
    for step in range(steps):
        starts = range(first, first + share, 2)
        pieces = [{name: value[at : at + 2] for name, value in whole[step].items()} for at in starts]
        own.append(float(parallel.finish(parallel.forward_backward(pieces, step))[0]))
        optimizer.step()
    found = dict(parallel.full_tensors())
    parallel.close()
    alone, right = made("example_gpt"), []
    stepping = torch.optim.AdamW(alone.parameters(), lr=1e-3)
    for step in range(steps):
        stepping.zero_grad()
        total, count = loss(alone, whole[step])
        (total / count).backward()
        right.append(float(total) / count)
        stepping.step()
    return {
        "loss": max(abs(one - other) for one, other in zip(own, right, strict=True)),
        "parameter": max(float((found[n] - p).norm() / p.norm()) for n, p in alone.named_parameters()),
    }


def refusal(world: World, plan: str, compiled: bool = False) -> str:
    """Why the example cannot be spread by `plan`."""
    sample = BY_NAME["example_gpt"].batch(2, seed=1)
    try:
        parallelize(lambda: made("example_gpt"), plan, world=world, loss=loss, sample=sample, compiled=compiled)
    except PlanRefused as error:
        return str(error)
    return ""


class Dropping(nn.Module):
    """A feed-forward block that drops before, inside and after what is split."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Dropout(0.5)
        self.up = nn.Linear(8, 16)
        self.gate = nn.Linear(8, 16)
        self.inside = nn.Dropout(0.5)
        self.down = nn.Linear(16, 8)
        self.after = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return x + self.after(self.down(self.inside(self.up(x) * torch.sigmoid(self.gate(x)))))


class Chained(nn.Module):
    """A chain of two such blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Dropping() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def masks(world: World, sequence: bool = False) -> dict[str, list[str]]:
    """What each dropout of each block kept, in order of the calls: forward passes, then recomputation. As hashes."""
    torch.manual_seed(0)
    model = Chained().double()
    paths = ("blocks.0", "blocks.1")
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    plan = choose_tensor_plan(
        model, paths, lambda one, batch: (one(batch).sum(), 1), x, world.world_size, sequence=sequence
    )
    assert plan.random
    apply_tensor_plan(model, plan, init_device_mesh("cpu", (world.world_size,)))
    recompute([model.get_submodule(path) for path in paths], "full")
    kept: dict[str, list[str]] = {}

    def note(name: str) -> Any:
        def called(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            mask = (output != 0).to(torch.uint8).flatten()
            kept.setdefault(name, []).append(bytes(mask.tolist()).hex())

        return called

    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(note(name))
    torch.manual_seed(7)
    first, second = model(x), model(x)
    kept["drawn after"] = [str(int(torch.randint(1 << 40, ())))]
    (first + second).sum().backward()
    return kept
