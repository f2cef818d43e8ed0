"""Carry out a tensor-parallel plan on a module: split parameters become DTensors, the code around them stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from distroml.runtime.parallel.tensor.layout import Layout
from distroml.runtime.parallel.tensor.parts import Mend, set_apart
from distroml.runtime.parallel.tensor.plan import Split, Stretches, TensorPlan
from distroml.runtime.parallel.tensor.regions import Region
from distroml.runtime.parallel.tensor.sequence import Along, Border
from distroml.runtime.parallel.tensor.split import own_parameters, split_module
from distroml.runtime.parallel.tensor.stepping import step_by_kind
from distroml.runtime.parallel.tensor.sums import GroupRanks, Ranks


def apply_tensor_plan(module: nn.Module, plan: TensorPlan, mesh: DeviceMesh, *, keeps_own: bool = True) -> None:
    """Split `module`, in place, over the one-dimensional tp mesh: before `fully_shard`, on meta or with values.

    Activations between modules stay plain tensors. Split parameters become DTensors `Shard(dim)` on `mesh`, whose rows
    `TensorPlan.rows` puts in the whole tensor's order. All others stay the plain parameters they were and get gradients
    of equal bits on every rank of `mesh`, but for `TensorPlan.summed`: those are partial, to be summed over the ranks
    once per step. Parameters of the plan that `module` lacks (a pipeline stage has a part of them) are passed over; a
    parameter that two names share stays shared. Optimizers of this process step both kinds from now on.

    Args:
        module: the whole model, or what a stage keeps of it under the same names.
        plan: from `choose_tensor_plan`.
        mesh: one dimension of `plan.degree` ranks.
        keeps_own: where hidden states are divided along the sequence, gather them anew in the backward pass instead of
            keeping them gathered; of no use where blocks are computed again anyway.

    Raises:
        ValueError: the mesh has another shape.
    """
    if mesh.ndim != 1 or mesh.size() != plan.degree:
        raise ValueError(
            f"the plan splits over {plan.degree} ranks, the mesh has shape {tuple(mesh.shape)}: "
            f"hand over the tp axis of the mesh, of size {plan.degree}"
        )
    done: dict[int, nn.Parameter] = {}
    for path, split in plan.modules.items():
        owner = find_module(module, path)
        for name, layout in split.parameters.items() if owner else ():
            whole = own_parameters(owner).get(name) if owner else None
            if owner is None or not isinstance(whole, nn.Parameter):
                continue
            if id(whole) not in done:
                done[id(whole)] = _divided(whole, layout, mesh)
            setattr(owner, name, done[id(whole)])
    step_by_kind()
    ranks = GroupRanks(mesh.get_group(), mesh.get_local_rank(), plan.degree)
    hook_modules(
        module, plan.modules, plan.blocks, ranks, random=plan.random, sequence=plan.sequence, keeps_own=keeps_own
    )


def _divided(whole: nn.Parameter, layout: Layout, mesh: DeviceMesh) -> nn.Parameter:
    local = layout.take(whole.detach(), mesh.get_local_rank(), mesh.size()).clone(memory_format=torch.contiguous_format)
    stride = torch.empty(whole.shape, device="meta").stride()
    parts = DTensor.from_local(local, mesh, [Shard(layout.dim)], run_check=False, shape=whole.shape, stride=stride)
    return nn.Parameter(parts, requires_grad=whole.requires_grad)


def hook_modules(
    module: nn.Module,
    splits: Mapping[str, Split],
    blocks: Sequence[str],
    ranks: Ranks,
    *,
    random: bool,
    sequence: Sequence[Stretches] = (),
    keeps_own: bool = True,
) -> None:
    """Make modules whose parameters are local already compute their parts. Blocks without parameters are left alone."""
    along = Along(ranks, keeps_own) if sequence else None
    regions: dict[str, dict[str, Region]] = {}
    mends: dict[str, Mend] = {split.region: split.mend for split in splits.values() if split.mend}
    here = [path for path in blocks if next((find_module(module, path) or nn.Module()).parameters(), None) is not None]
    for path, split in splits.items():
        found = find_module(module, path)
        block = next((block for block in here if not block or path == block or path.startswith(f"{block}.")), None)
        if found is not None and block is not None:
            region = regions.setdefault(block, {}).setdefault(
                split.region or path, Region(ranks, random, mends.get(split.region, ""), along)
            )
            split_module(found, split, region)
    borders: dict[str, Border] = {}
    for run in sequence:
        # A pipeline's stage has some of the blocks; what goes to the next one is whole.
        own = [path for path in run.blocks if path in here]
        for path in own:
            assert along is not None
            borders[path] = Border(along, run.door, path == own[0], path == own[-1], random)
    for path in dict.fromkeys((*regions, *borders)):
        block = module.get_submodule(path)
        inside = list(regions.get(path, {}).values())
        block.forward = _FromTheStart(block, inside, borders.get(path))


class _FromTheStart:
    """A block's forward whose regions start anew. No hook: recomputation calls the forward past the hooks."""

    def __init__(self, block: nn.Module, regions: list[Region], border: Border | None) -> None:
        self._block = block
        self._forward = block.forward
        self._regions = regions
        self._border = border
        self._mending = any(region.mend for region in regions)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for region in self._regions:
            region.reset()
        border = self._border
        if border is None:
            result = self._forward(*args, **kwargs)
        else:
            args, kwargs = border.enter(args, kwargs)
            with border.numbers(self._block):
                result = self._forward(*args, **kwargs)
            result = border.leave(result)
        return set_apart(result) if self._mending else result


def find_module(module: nn.Module, path: str) -> nn.Module | None:
    """The submodule at `path`, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
