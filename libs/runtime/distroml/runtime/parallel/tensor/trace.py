"""Which linears of a block feed which: found by one run of it, from the graph that autograd keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A module that multiplies its input by a matrix.

    Attributes:
        path: within the block.
        inputs: width of what comes in.
        outputs: width of what goes out.
        output_dim: the dimension of `weight` that counts outputs; the other counts inputs.
        bias: whether it adds one.
        feeds: paths of the linears whose outputs reach its input by a way without further linears; empty where it
            sees only what comes from outside of the block.
    """

    path: str
    inputs: int
    outputs: int
    output_dim: int
    bias: bool
    feeds: frozenset[str]


def modules_of(block: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of everything in `block`, itself included."""
    return list(cast("Any", block).named_modules())


def output_dim(module: nn.Module) -> int | None:
    """The dimension of `module.weight` that counts outputs; None where the module is no linear."""
    if isinstance(module, nn.Linear):
        return 0
    # GPT-2's own linear, which keeps its weight the other way round.
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int):
        return 1
    return None


def linears(block: nn.Module, call: Callable[[nn.Module], Any]) -> list[Linear]:
    """The linears that `call(block)` runs, in the order in which they first run.

    Args:
        block: its parameters need a gradient; is left as it was.
        call: runs it with gradients enabled.
    """
    upstream: dict[str, set[str]] = {}
    hooks: list[Any] = []

    def watch(path: str, module: nn.Module) -> None:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            found = upstream.setdefault(path, set())
            for value in args:
                if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                    found |= _sources(value.grad_fn)

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return _Mark.apply(output, path)

        hooks.extend((module.register_forward_pre_hook(before), module.register_forward_hook(after)))

    dims: dict[str, int] = {}
    for path, module in modules_of(block):
        dim = output_dim(module)
        if dim is not None:
            dims[path] = dim
            watch(path, module)
    try:
        with torch.enable_grad():
            call(block)
    finally:
        for hook in hooks:
            hook.remove()
    return [_linear(block, path, dims[path], frozenset(feeds)) for path, feeds in upstream.items()]


def _linear(block: nn.Module, path: str, dim: int, feeds: frozenset[str]) -> Linear:
    own = dict(block.get_submodule(path).named_parameters(recurse=False))
    weight = own["weight"]
    return Linear(
        path=path,
        inputs=weight.shape[1 - dim],
        outputs=weight.shape[dim],
        output_dim=dim,
        bias="bias" in own,
        feeds=feeds - {path},
    )


class _Mark(torch.autograd.Function):
    """Puts a module's path into the graph, where its output is."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, path: str) -> torch.Tensor:
        ctx.path = path
        # A copy: what is a view may not be changed in place, as some blocks do with a linear's output.
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


def _sources(node: Any) -> set[str]:
    """The marks that are reached first on the ways back from `node`."""
    found: set[str] = set()
    seen: set[Any] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        path = getattr(node, "path", None)
        if isinstance(path, str):
            found.add(path)
        else:
            waiting.extend(following for following, _ in node.next_functions)
    return found
