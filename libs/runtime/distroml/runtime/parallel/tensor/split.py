"""Make a module compute its part: its code stays as it is, and sees local parameters and local sizes while it runs.

A split parameter is a DTensor to everything outside of the module's own forward pass: optimizers, `fully_shard`,
checkpoints. During it, the module's attribute of that name is the local tensor (a view, whose gradient becomes the
DTensor's), so that any module can be split, whatever it does with its parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.tensor.plan import Split
from distroml.runtime.parallel.tensor.regions import Region
from distroml.runtime.parallel.tensor.sequence import Stretch

Call = tuple[tuple[Any, ...], dict[str, Any]]


def split_module(module: nn.Module, split: Split, region: Region) -> None:
    """Hook `module`, whose split parameters are local tensors or DTensors of them, to compute its part of the whole.

    Args:
        module: gets the split's attributes, and hooks around its forward pass.
        split: what to do.
        region: the passage that the module opens or closes; shared by the modules of one region.
    """
    for name, value in split.attributes.items():
        set_count(module, name, value)
    own = [name for name in split.parameters if own_parameters(module).get(name) is not None]
    # What is added after the sum must not be added by each rank before it.
    bias = "bias" if split.style == "row" and own_parameters(module).get("bias") is not None else None

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        for name in own:
            _show(module, name, _local(module, name))
        if bias:
            whole = own_parameters(module)[bias]
            _show(module, bias, None if isinstance(module, nn.Linear) else torch.zeros_like(_is_there(whole)))
        if split.style == "row":
            region.closed()
            return _each_float(args, _plain), _each_float(kwargs, _plain)
        elif split.style in ("column", "experts"):
            return _each(args, region.enter), _each(kwargs, region.enter)
        return args, kwargs

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        for name in own:
            vars(module).pop(name)
        if bias:
            vars(module).pop(bias)
        if split.style == "column":
            region.opened(output.device, module.training)
            return region.mark(output)
        elif split.style == "row":
            output = region.leave(output)
            return output + _is_there(own_parameters(module)[bias]).to(output.dtype) if bias else output
        elif split.style == "experts":
            region.closed()
            return _each_float(output, region.leave)
        return output

    if split.style == "inside" and not own:
        return
    if split.style == "column" and region.along is not None:
        module.forward = _Keeping(module.forward, region)
    if split.style == "experts":
        # Its columns and rows are inside of one forward pass.
        module.register_forward_pre_hook(lambda module, _: region.opened(_device(module), module.training))
    module.register_forward_pre_hook(before, with_kwargs=True)
    module.register_forward_hook(after)


class _Keeping:
    """A column's forward that keeps no more of its input than the rank's stretch."""

    def __init__(self, forward: Callable[..., Any], region: Region) -> None:
        self._forward = forward
        self._region = region

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._region.keeping():
            return self._forward(*args, **kwargs)


def set_count(module: nn.Module, name: str, value: int) -> None:
    """Give `module` another value of an integer; `config.name` is one of its configuration, which becomes its own."""
    first, _, rest = name.partition(".")
    if not rest:
        setattr(module, name, value)
        return
    own = copy.copy(getattr(module, first))
    setattr(own, rest, value)
    setattr(module, first, own)


def own_parameters(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """A module's own parameters by name, also while something else is shown in their place."""
    # The dictionary itself: the attribute may be hidden, and `named_parameters` makes a new one for each forward pass.
    return cast("Any", module)._parameters


def _show(module: nn.Module, name: str, value: torch.Tensor | None) -> None:
    # An instance attribute hides the parameter of that name. It goes by none of `nn.Module`'s own rules, and compiles.
    object.__setattr__(module, name, value)


def _local(module: nn.Module, name: str) -> torch.Tensor:
    parameter = _is_there(own_parameters(module)[name])
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if type(tensor) is torch.Tensor else tensor.as_subclass(torch.Tensor)


def _is_there(parameter: torch.Tensor | None) -> torch.Tensor:
    assert parameter is not None, "a parameter of the plan was taken away"
    return parameter


def _each(value: Any, enter: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with its floating-point tensors entered, and all that is divided along the sequence."""

    def enters(leaf: Any) -> bool:
        return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or isinstance(leaf, Stretch))

    return trees.map_leaves(lambda leaf: enter(leaf) if enters(leaf) else leaf, value)


def _each_float(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`value` with `change` done to its floating-point tensors."""
    return trees.map_leaves(
        lambda leaf: change(leaf) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf, value
    )
