"""How a model calls its blocks, seen in one run on weights without memory, to call a block alone in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.profile.chain import run_without_weights


@dataclass(frozen=True, slots=True)
class BlockCall:
    """One block's arguments; floating tensors that depend on weights are random numbers of the same shape.

    Blocks with equal signatures have equal structure and are called alike. `flowing` are the places in `(args, kwargs)`
    of tensors that depend on weights, and so want a gradient.
    """

    signature: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    flowing: frozenset[trees.Path]


def record_calls(model: nn.Module, blocks: Sequence[str], run: Callable[[nn.Module], Any]) -> dict[str, BlockCall]:
    """How `run(model)` calls each block. Nothing of the model is allocated or changed."""
    calls: dict[str, BlockCall] = {}
    generator = torch.Generator().manual_seed(0)

    def note(path: str) -> Callable[..., None]:
        def called(block: nn.Module, args: Any, kwargs: Any) -> None:
            leaves, _ = trees.flatten((args, kwargs))
            flowing = {place for place, leaf in leaves.items() if isinstance(leaf, torch.Tensor) and leaf.requires_grad}
            args, kwargs = trees.map_leaves(lambda leaf: _real(leaf, generator), (args, kwargs))
            calls[path] = BlockCall(_signature(block, args, kwargs), args, kwargs, frozenset(flowing))

        return called

    handles = [model.get_submodule(path).register_forward_pre_hook(note(path), with_kwargs=True) for path in blocks]
    try:
        run_without_weights(model, run)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _real(leaf: Any, generator: torch.Generator) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if type(leaf) is torch.Tensor:
        return leaf.detach().clone()
    if leaf.is_floating_point():
        return torch.randn(leaf.shape, generator=generator).to(leaf.dtype)
    return torch.zeros(leaf.shape, dtype=leaf.dtype)


def _signature(block: nn.Module, args: Any, kwargs: Any) -> str:
    shapes = [f"{name}{tuple(parameter.shape)}" for name, parameter in block.named_parameters()]
    leaves, _ = trees.flatten((args, kwargs))
    given = [
        f"{trees.words(path)}{tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else type(leaf).__name__}"
        for path, leaf in leaves.items()
    ]
    counts = [f"{name}={value}" for name, value in sorted(vars(block).items()) if isinstance(value, int | str)]
    return "|".join([type(block).__name__, *shapes, *given, *counts])
