"""Stands in for blocks that decide by values (routing to experts), which fake tensors do not have.

One block of each kind runs once for real, on parameters that are one repeated number and so take no memory, to learn
the shapes it gives back. In the graph its results then hang on everything that went in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call

from distroml.runtime.parallel.pipeline import trees

_FILL = 0.01


class _Original(nn.Module):
    """A block's own forward without its hooks."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.block = block
        self._forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(*args, **kwargs)


def _real(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor) or type(leaf) is torch.Tensor:
        return leaf
    return torch.full((), _FILL if leaf.is_floating_point() else 0, dtype=leaf.dtype).expand(leaf.shape)


class _StandIn:
    def __init__(self, block: nn.Module, known: dict[Any, tuple[dict[trees.Path, Any], trees.Shape]]) -> None:
        self._block = block
        self._forward = block.forward
        self._known = known

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, shape = trees.flatten((args, kwargs))
        state = dict(cast("Any", self._block).named_parameters())
        key = (
            type(self._block),
            tuple((name, tuple(tensor.shape)) for name, tensor in state.items()),
            tuple((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else repr(x) for x in leaves.values()),
        )
        if key not in self._known:
            self._known[key] = self._run(leaves, shape, state)
        result, result_shape = self._known[key]
        anchor = sum(
            (tensor.sum() * 0 for tensor in (*leaves.values(), *state.values()) if _wants_gradient(tensor)),
            torch.zeros(()),
        )
        return trees.build([_given(leaf, leaves, anchor) for leaf in result.values()], result_shape)

    def _run(
        self, leaves: dict[trees.Path, Any], shape: trees.Shape, state: dict[str, torch.Tensor]
    ) -> tuple[dict[trees.Path, Any], trees.Shape]:
        real = [_real(leaf) for leaf in leaves.values()]
        args, kwargs = trees.build(real, shape)
        whole = {**state, **dict(self._block.named_buffers())}
        held = {f"block.{name}": _real(tensor.detach()) for name, tensor in whole.items()}
        with torch.no_grad():
            result = functional_call(_Original(self._block, self._forward), held, args, kwargs)
        sources = {id(leaf): path for path, leaf in zip(leaves, real, strict=True) if isinstance(leaf, torch.Tensor)}
        found, result_shape = trees.flatten(result)
        return {path: _From(sources[id(leaf)]) if id(leaf) in sources else leaf for path, leaf in found.items()}, (
            result_shape
        )


class _From:
    """A result that is one of the arguments."""

    def __init__(self, path: trees.Path) -> None:
        self.path = path


def _given(leaf: Any, arguments: dict[trees.Path, Any], anchor: torch.Tensor | int) -> Any:
    if isinstance(leaf, _From):
        return arguments[leaf.path]
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.is_floating_point() and isinstance(anchor, torch.Tensor):
        return anchor.to(leaf.dtype).expand(leaf.shape).clone()
    return torch.zeros(leaf.shape, dtype=leaf.dtype)


def _wants_gradient(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


@contextmanager
def standing_in(model: nn.Module, blocks: Sequence[str]) -> Generator[None]:
    """Within it every block of the chain is stood in for."""
    known: dict[Any, tuple[dict[trees.Path, Any], trees.Shape]] = {}
    found = [model.get_submodule(path) for path in blocks]
    for block in found:
        block.forward = _StandIn(block, known)
    try:
        yield
    finally:
        for block in found:
            del block.forward
