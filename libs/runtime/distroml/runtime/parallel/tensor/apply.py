"""Carry out a tensor-parallel plan on a module: split parameters become DTensors, the code around them stays."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from distroml.runtime.parallel.tensor.plan import Split, TensorPlan
from distroml.runtime.parallel.tensor.regions import Region
from distroml.runtime.parallel.tensor.split import split_module
from distroml.runtime.parallel.tensor.sums import GroupRanks, Ranks


def apply_tensor_plan(module: nn.Module, plan: TensorPlan, mesh: DeviceMesh) -> None:
    """Split `module`, in place, over the one-dimensional tp mesh; before `fully_shard`, on meta or with real parameters.

    Activations between modules stay plain tensors. Split parameters are DTensors `Shard(dim)` on `mesh` of what
    `TensorPlan.pieces` says; all others stay the plain parameters they were, and get gradients of equal bits on every
    rank of `mesh`. Modules and parameters of the plan that `module` lacks (a pipeline stage has a part of them) are
    passed over; a parameter that two names share stays shared.

    Args:
        module: the whole model, or what a stage keeps of it under the same names.
        plan: from `choose_tensor_plan`.
        mesh: one dimension of `plan.degree` ranks.

    Raises:
        ValueError: the mesh has another shape.
    """
    if mesh.ndim != 1 or mesh.size() != plan.degree:
        raise ValueError(
            f"the plan splits over {plan.degree} ranks, the mesh has shape {tuple(mesh.shape)}: "
            f"hand over the tp axis of the mesh, of size {plan.degree}"
        )
    ranks = GroupRanks(mesh.get_group(), mesh.get_local_rank(), plan.degree)
    done: dict[int, nn.Parameter] = {}
    for path, split in plan.modules.items():
        owner = find_module(module, path)
        for name, layout in split.parameters.items() if owner else ():
            whole = owner._parameters.get(name) if owner else None
            if owner is None or whole is None:
                continue
            if id(whole) not in done:
                local = layout.take(whole.detach(), ranks.rank, plan.degree).clone(
                    memory_format=torch.contiguous_format
                )
                parts = DTensor.from_local(local, mesh, [Shard(layout.dim)], run_check=False)
                done[id(whole)] = nn.Parameter(parts, requires_grad=whole.requires_grad)
            owner._parameters[name] = done[id(whole)]
    hook_modules(module, plan.modules, plan.blocks, ranks, random=plan.random)


def hook_modules(
    module: nn.Module, splits: dict[str, Split], blocks: tuple[str, ...], ranks: Ranks, *, random: bool
) -> None:
    """Make modules whose parameters are local already compute their parts."""
    regions: dict[str, Region] = {}
    for path, split in splits.items():
        found = find_module(module, path)
        if found is not None:
            region = regions.setdefault(split.region or path, Region(ranks, random))
            split_module(found, split, ranks, region)
    for path in blocks:
        found = find_module(module, path)
        inside = [region for closing, region in regions.items() if not path or closing.startswith(f"{path}.")]
        if found is not None and inside:
            found.register_forward_pre_hook(_Reset(inside))


class _Reset:
    """Forward pre-hook of a block: its regions start anew."""

    def __init__(self, regions: list[Region]) -> None:
        self._regions = regions

    def __call__(self, module: nn.Module, args: object) -> None:
        for region in self._regions:
            region.reset()


def find_module(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at `path`, or None."""
    found: nn.Module | None = module
    for name in path.split(".") if path else ():
        found = None if found is None else found._modules.get(name)
    return found
