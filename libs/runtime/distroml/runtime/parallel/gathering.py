"""The whole of a parameter that lies divided over ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from distroml.runtime.elastic import hearing
from distroml.runtime.parallel.divide import Part
from distroml.runtime.parallel.mesh import Mesh


def whole_of(name: str, parameter: nn.Parameter | None, part: Part, mesh: Mesh) -> torch.Tensor:
    """A parameter's full value, as the undivided model has it, on the CPU of every rank. Collective.

    Args:
        name: of the parameter in the whole model.
        parameter: this rank's part; None where its stage holds none.
        part: what lies on this rank.
        mesh: of the plan.
    """
    counted = part.counted[name]
    with torch.no_grad(), hearing():
        full = None
        if parameter is not None:
            value = parameter.detach()
            full = (value.full_tensor() if isinstance(value, DTensor) else value).cpu()
            layout = part.split.layout(name) if part.split is not None else None
            if layout is not None:
                full = layout.restore(full, mesh.plan.tp)
            full = full.contiguous()
        group = mesh.group("pp")
        if group is None:
            assert full is not None
            return full
        known: list[tuple[tuple[int, ...], torch.dtype] | None] = [None] * mesh.plan.pp
        dist.all_gather_object(known, (tuple(full.shape), full.dtype) if counted and full is not None else None, group)
        source = next(place for place, one in enumerate(known) if one is not None)
        shape, dtype = known[source] or ((), torch.float32)
        # NCCL moves what is on a GPU only.
        device = mesh.world.device
        value = torch.empty(shape, dtype=dtype, device=device)
        if full is not None and mesh.place["pp"] == source:
            value = full.to(device)
        dist.broadcast(value, dist.get_global_rank(group, source), group)
        return value.cpu()
