"""Carry out a tensor plan on a model, or on the part of it that one stage holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from distroml.runtime.parallel.tensor.layers import Exchange, GroupExchange, column_forward, row_forward
from distroml.runtime.parallel.tensor.layout import Split
from distroml.runtime.parallel.tensor.regions import Regions

if TYPE_CHECKING:
    from distroml.runtime.parallel.tensor.plan import TensorPlan


def install(
    module: nn.Module,
    splits: Mapping[str, Split],
    overrides: Mapping[str, Mapping[str, Any]],
    exchange: Exchange,
    regions: Regions,
) -> None:
    """Give the split layers of `module` their forwards, and change the attributes that count what is divided."""
    for name, split in splits.items():
        layer = module.get_submodule(name)
        make = column_forward if split.kind == "column" else row_forward
        layer.forward = make(layer, exchange, regions)
    for name, values in overrides.items():
        owner = module.get_submodule(name) if name else module
        if any(attribute.startswith("config.") for attribute in values):
            # The configuration is shared with the rest of the model, which is not divided.
            owner.config = copy.copy(cast("Any", owner.config))
        for attribute, value in values.items():
            target: Any = owner.config if attribute.startswith("config.") else owner
            setattr(target, attribute.removeprefix("config."), value)


def apply_tensor_plan(model: nn.Module, plan: TensorPlan, mesh: DeviceMesh) -> None:
    """Divide `model`'s layers along `mesh`; layers whose parameters lie on another stage are passed over. In place.

    A divided parameter becomes a DTensor. Its global order of rows is the dealt one: all of rank 0's rows, then all of
    rank 1's; `Split.restore` gives the model's own order, which is another where a layer has several sections.

    Args:
        model: the whole model's structure; parameters real or on `meta`, equal on all ranks.
        plan: proved for this model.
        mesh: one-dimensional, along tp.
    """
    rank, degree = mesh.get_local_rank(), mesh.size()
    present = {
        name: split
        for name, split in plan.splits.items()
        if isinstance(model.get_submodule(name)._parameters.get("weight"), nn.Parameter)  # pyright: ignore[reportPrivateUsage]
    }
    for name, split in present.items():
        layer = model.get_submodule(name)
        _divide(layer, "weight", split, split.weight_dim, rank, degree, mesh)
        if split.kind == "column" and layer.bias is not None:
            _divide(layer, "bias", split, 0, rank, degree, mesh)
    regions = Regions(rank)
    overrides = {
        owner: values
        for owner, values in plan.overrides.items()
        if any(name == owner or name.startswith(f"{owner}.") for name in present)
    }
    install(model, present, overrides, GroupExchange(mesh.get_group()), regions)
    for name in {_block_of(name) for name in present}:
        model.get_submodule(name).register_forward_pre_hook(lambda *_: regions.reset())


def _block_of(name: str) -> str:
    """The path up to the first number: the member of the list of blocks that a layer lies in."""
    parts = name.split(".")
    stop = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 2)
    return ".".join(parts[: stop + 1])


def _divide(layer: nn.Module, name: str, split: Split, dim: int, rank: int, degree: int, mesh: DeviceMesh) -> None:
    whole = cast("nn.Parameter", getattr(layer, name))
    own = split.take(whole.detach(), dim, rank, degree).contiguous()
    shape = torch.Size([*whole.shape])
    stride = torch.empty(shape, device="meta").stride()
    dealt = DTensor.from_local(own, mesh, [Shard(dim)], run_check=False, shape=shape, stride=stride)
    setattr(layer, name, nn.Parameter(dealt, requires_grad=whole.requires_grad))
