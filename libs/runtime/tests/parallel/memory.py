"""What each rank of the pool does for tests of recomputation and precision."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distroml.runtime.elastic import World
from libs.runtime.tests.parallel.models import Quirks, samples
from libs.runtime.tests.parallel.ranks import GLOBAL_BATCH, pieces, spread, under_plan


class _Operations(TorchDispatchMode):
    """Counts matrix products and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.activations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        self.activations += func is torch.ops.aten.tanh.default
        return func(*args, **(kwargs or {}))


def recomputed(world: World, plan: str, kind: str) -> dict[str, Any]:
    """Train for three steps; "bits", and of one microbatch "saved" bytes and how many operations it took.

    What "selective" keeps of products it keeps by itself: it is seen by their number only.
    """
    parallel = spread(world, f"{plan},recompute={kind}", Quirks(dropout=0.25), 2)
    course = under_plan(parallel, 2, 1.0, steps=3)
    saved: dict[int, int] = {}
    alive: list[Any] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        saved[storage._cdata] = storage.nbytes()
        return tensor

    own = {parameter.untyped_storage()._cdata for parameter in parallel.module.parameters() if _plain(parameter)}
    share = GLOBAL_BATCH // parallel.mesh.dp_size
    batches = list(pieces(samples(share, 3), 0, share, share))
    parallel.forward_backward(batches, 9)  # stages of a pipeline follow a batch of a new shape first
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _Operations() as done:
        parallel.forward_backward(batches, 9)
    kept = sum(size for storage, size in saved.items() if storage not in own)
    parallel.close()
    return {"bits": course.bits(), "saved": kept, "products": done.products, "activations": done.activations}


def _plain(parameter: torch.Tensor) -> bool:
    return type(parameter) is torch.nn.Parameter


def precise(world: World, plan: str, precision: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train in float32 parameters; "losses", "bits" and the types of what is kept and of what blocks compute."""
    parallel = spread(world, plan, Quirks(width=8), 2, torch.float32, precision=precision, **options)
    inside: set[str] = set()

    def note(module: torch.nn.Module, args: Any, output: torch.Tensor) -> None:
        inside.add(str(output.dtype))

    for module in parallel.module.modules():
        if isinstance(module, torch.nn.Linear) and next(module.parameters(), None) is not None and not options:
            module.register_forward_hook(note)
    course = under_plan(parallel, 2, 1.0, steps=4)
    batch = samples(2, 7)
    told, _ = parallel.measure(batch)
    output = parallel(batch["tokens"])
    parallel.close()
    return {
        "losses": course.losses,
        "bits": course.bits(),
        "parameters": sorted({str(parameter.dtype) for parameter in parallel.parameters()}),
        "whole": sorted({str(value.dtype) for value in course.parameters.values()}),
        "inside": sorted(inside),
        "measured": float(told),
        "output": str(output.dtype),
    }
