"""A module's parameters and buffers filled from a source, of which only this rank's slices are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn

from distroml.runtime.checkpoint.layout import Rows, local_part, local_pieces
from distroml.runtime.parallel.weights.errors import WeightsMismatch
from distroml.runtime.parallel.weights.source import WeightSource, named_tensors
from distroml.runtime.parallel.weights.swap import swap


def materialise(
    module: nn.Module,
    source: WeightSource,
    *,
    name_of: Callable[[str], str] = str,
    rows: Mapping[str, Rows] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Give every parameter and buffer its value; tensors without memory get it first. Needs no process group.

    What tensor parallelism and `fully_shard` made of the parameters may be there already, on `meta` or after
    `to_empty`: of a DTensor the rank's own slice is filled. Tied parameters stay one, buffers are filled, and
    placeholders of other pipeline stages, which are no parameters, stay as they are.

    Args:
        module: what this rank holds of the model.
        source: the weights of the whole model; closed at the end.
        name_of: from a name in `module`, without wrappers' prefixes, to the name in the source.
        rows: by the source's names, where a parameter holds its rows in another order than the whole one.
        device: where tensors without memory get it.

    Raises:
        WeightsMismatch: the source lacks a name, or has another shape or kind of number; nothing is filled.
    """
    wanted = {
        name_of(name): tensor for name, tensor in named_tensors(module).items() if tensor.is_meta or not _faked(tensor)
    }
    _check(wanted, source)
    del wanted
    allocate(module, device)
    orders = rows or {}
    done: set[int] = set()
    try:
        for name, tensor in named_tensors(module).items():
            if id(tensor) in done or _faked(tensor):
                continue
            done.add(id(tensor))
            local = local_part(tensor)
            for piece in local_pieces(tensor, orders.get(name_of(name)), name):
                if local.numel():
                    piece.of_local(local).copy_(source.read(name_of(name), piece.index))
    finally:
        source.close()


def allocate(module: nn.Module, device: torch.device | str) -> None:
    """Give memory, with nothing in it yet, to what has none; ties and attributes of parameters stay."""
    before = [
        (cast("dict[str, torch.Tensor]", held), name, tensor)
        for part in module.modules()
        for held in (part._parameters, part._buffers)  # pyright: ignore[reportPrivateUsage]
        for name, tensor in held.items()
        if tensor is not None and tensor.is_meta
    ]
    if not before:
        return

    def of_meta(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor

    # What Module.to_empty calls, which would also take the content of tensors that have some. FSDP modules override it
    # to learn of their new parameters, and pad uneven shards there.
    cast(Any, module)._apply(of_meta)
    replaced: dict[int, torch.Tensor] = {}
    for held, name, old in before:
        new = replaced.setdefault(id(old), held[name])
        for key, value in vars(old).items():
            if key not in vars(new):
                setattr(new, key, value)
    swap(module, replaced)
    for held, name, old in before:
        held[name] = replaced[id(old)]


def _check(wanted: Mapping[str, torch.Tensor], source: WeightSource) -> None:
    known = frozenset(source.names())
    problems = [f"{name} is missing" for name in wanted if name not in known]
    for name, tensor in wanted.items():
        if name in known and source.shape(name) != tuple(tensor.shape):
            problems.append(f"{name} has the shape {source.shape(name)} there and {tuple(tensor.shape)} in the model")
        elif name in known and source.dtype(name).is_floating_point != tensor.dtype.is_floating_point:
            problems.append(f"{name} is {source.dtype(name)} there and {tensor.dtype} in the model")
    if problems:
        raise WeightsMismatch(
            problems, "Use the weights of this very architecture, or change the model's configuration"
        )


def _faked(tensor: torch.Tensor) -> bool:
    """Whether all elements of a dimension lie in one place: a stand-in for what another pipeline stage holds."""
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return False
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
