"""Tensors of a module replaced by others wherever the module holds them, ties and lists of parameters included."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

Tensors = Mapping[int, torch.Tensor]
"""By `id` of the tensor that is replaced."""


def swap(module: nn.Module, replaced: Tensors) -> None:
    """Put `replaced[id(tensor)]` in place of each tensor: as parameter, buffer, or in attributes, lists and dicts.

    Recurrent modules hold their parameters a second time, in a list; some models hold a buffer under a second name.
    """
    for part in module.modules():
        for held in (part._parameters, part._buffers):  # pyright: ignore[reportPrivateUsage]
            for name, tensor in held.items():
                if tensor is not None and id(tensor) in replaced:
                    cast("dict[str, Any]", held)[name] = replaced[id(tensor)]
        for name, value in list(vars(part).items()):
            if name not in ("_parameters", "_buffers", "_modules"):
                changed = _changed(value, replaced)
                if changed is not value:
                    # Past Module.__setattr__, which would take a parameter for a registration.
                    vars(part)[name] = changed


def _changed(value: Any, replaced: Tensors) -> Any:
    if isinstance(value, torch.Tensor):
        return replaced.get(id(value), value)
    if isinstance(value, weakref.ref):
        target = cast("weakref.ref[Any]", value)()
        return weakref.ref(replaced[id(target)]) if id(target) in replaced else cast(Any, value)
    if type(value) is list:
        items = cast("list[Any]", value)
        for place, item in enumerate(items):
            items[place] = _changed(item, replaced)
        return items
    if type(value) is dict:
        mapping = cast("dict[Any, Any]", value)
        for key, item in mapping.items():
            mapping[key] = _changed(item, replaced)
        return mapping
    if type(value) is tuple:
        several = cast("tuple[Any, ...]", value)
        changed = tuple(_changed(item, replaced) for item in several)
        return changed if any(one is not other for one, other in zip(changed, several, strict=True)) else several
    return value


def loose_tensors(module: nn.Module, registered: Tensors) -> list[torch.Tensor]:
    """Tensors in attributes, lists and dicts of the module that are neither parameters nor buffers."""
    found: dict[int, torch.Tensor] = {}

    def look(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            if id(value) not in registered:
                found[id(value)] = value
        elif type(value) in (list, tuple):
            for item in cast("list[Any]", value):
                look(item)
        elif type(value) is dict:
            for item in cast("dict[Any, Any]", value).values():
                look(item)

    for part in module.modules():
        for name, value in vars(part).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                look(value)
    return list(found.values())


def blank_of(tensor: torch.Tensor) -> torch.Tensor:
    """The same parameter or buffer without memory: shape, layout, dtype, and what was attached to it."""
    meta = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        meta = nn.Parameter(meta, requires_grad=tensor.requires_grad)
    for name, value in vars(tensor).items():
        if name != "_is_param":
            setattr(meta, name, value)
    return meta
