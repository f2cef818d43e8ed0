"""One representative of each kind of block, and what the model calls it with; no weights need be there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distroml.runtime.parallel.tensor.apply import find_module


class _AllSeen(Exception):
    """Every kind of block was called: the rest of the model need not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A kind of block.

    Attributes:
        paths: all blocks of the kind; they have parameters of the same names and shapes.
        block: the first of them.
        args: positional arguments of its first call; floating-point tensors in float64, on the CPU, cut from the graph
            but with `requires_grad` where the model hands over something that parameters before the block made.
        kwargs: the same, by name.
    """

    paths: tuple[str, ...]
    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def capture(model: nn.Module, blocks: Sequence[str], run: Callable[[nn.Module], object]) -> list[Sample]:
    """Run `model` once and keep what each kind of block is called with, in order of the calls.

    Only the first block of a kind is computed: the others hand on what it returned. Parameters on meta are stood in for
    by one zero of their shape, and the values of tensors are then drawn at random.

    Args:
        model: is not changed.
        blocks: module paths.
        run: calls the model it is given with a sample of few tokens.

    Raises:
        ValueError: a path names no module, or `run` never called one of the blocks.
    """
    missing = [path for path in blocks if find_module(model, path) is None]
    if missing:
        raise ValueError(f"the model has no module {missing[0]!r}")
    invented = any(parameter.is_meta for parameter in model.parameters())
    kinds: dict[object, list[str]] = {}
    for path in blocks:
        kinds.setdefault(_kind(model.get_submodule(path)), []).append(path)
    waiting = {kind: None for kind in kinds}
    samples: dict[object, Sample] = {}
    outputs: dict[object, Any] = {}
    stand_in = _stand_in(model)

    def replace(path: str, kind: object) -> None:
        block, original = stand_in.get_submodule(path), model.get_submodule(path)
        compute = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if kind not in samples:
                samples[kind] = Sample(
                    paths=tuple(kinds[kind]),
                    block=original,
                    args=_keep(args, invented),
                    kwargs=_keep(kwargs, invented),
                )
                waiting.pop(kind)
                if not waiting:
                    raise _AllSeen
                outputs[kind] = compute(*args, **kwargs)
            return outputs[kind]

        block.forward = forward

    for kind, paths in kinds.items():
        for path in paths:
            replace(path, kind)
    state = torch.get_rng_state()
    try:
        with torch.enable_grad():
            run(stand_in)
    except _AllSeen:
        pass
    finally:
        torch.set_rng_state(state)
    if waiting:
        raise ValueError(f"the sample does not lead through block {kinds[next(iter(waiting))][0]!r}")
    return list(samples.values())


def _kind(block: nn.Module) -> object:
    shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in block.named_parameters(remove_duplicate=False))
    return type(block), shapes


def _stand_in(model: nn.Module) -> nn.Module:
    """A copy that shares real parameters, and has stand-ins without memory for those on meta."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if parameter.is_meta:
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            memo[id(parameter)] = nn.Parameter(zeros, requires_grad=parameter.is_floating_point())
        else:
            memo[id(parameter)] = parameter
    for buffer in model.buffers():
        if buffer.is_meta:
            memo[id(buffer)] = torch.zeros((), dtype=buffer.dtype).expand(buffer.shape).clone()
    stand_in = copy.deepcopy(model, memo)
    stand_in.eval()
    return stand_in


def _keep(value: Any, invented: bool) -> Any:
    """A copy that later use of the original does not change."""
    if isinstance(value, torch.Tensor):
        kept = value.detach().cpu()
        if not kept.is_floating_point():
            return kept.clone()
        kept = torch.randn(kept.shape, dtype=torch.float64) if invented else kept.double().clone()
        return kept.requires_grad_(value.requires_grad)
    if isinstance(value, tuple):
        return tuple(_keep(part, invented) for part in value)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [_keep(part, invented) for part in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {key: _keep(part, invented) for key, part in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return copy.deepcopy(value)
