"""One representative of each kind of block, and what the model calls it with; no weights need be there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.tensor.apply import find_module

_SAMPLES, _TOKENS = 3, 8


class _AllSeen(Exception):
    """Every kind of block was called: the rest of the model need not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A kind of block.

    Attributes:
        paths: all blocks of the kind; they have parameters of the same names and shapes.
        block: the first of them.
        args: positional arguments of its first call, on the CPU and cut from the graph, but with `requires_grad` where
            the model hands over something that parameters before the block made.
        kwargs: the same, by name.
    """

    paths: tuple[str, ...]
    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def capture(
    model: nn.Module,
    blocks: Sequence[str],
    loss: Callable[[nn.Module, Any], object],
    sample: Any,
    tokens: int = _TOKENS,
) -> list[Sample]:
    """Run `model` once on a few tokens and keep what each kind of block is called with, in order of the calls.

    Only the first block of a kind is computed: the others hand on what it returned. Parameters on other devices than
    the CPU are stood in for by one zero of their shape, and the values of tensors are then drawn at random.

    Args:
        model: is not changed.
        blocks: module paths.
        loss: called with a copy of the model, and the sample or a small part of it.
        sample: a batch on the CPU.
        tokens: of a sequence, at most, where the model takes sequences that are cut.

    Raises:
        ValueError: a path names no module, or the sample never leads through one of the blocks.
    """
    missing = [path for path in blocks if find_module(model, path) is None]
    if missing:
        raise ValueError(f"the model has no module {missing[0]!r}")
    failure: Exception | None = None
    for small in _smaller(sample, tokens):
        try:
            return _capture(model, blocks, lambda one, small=small: loss(one, small))
        except Exception as error:
            # A model may want its samples whole, and fail in any way where it does.
            failure = error
    raise ValueError(f"the sample does not lead through the blocks: {failure}") from failure


def _smaller(sample: Any, tokens: int) -> Iterator[Any]:
    """The sample cut to a few samples and tokens, to a few samples, and whole."""
    leaves = [leaf for leaf in trees.leaves_of(sample) if isinstance(leaf, torch.Tensor) and leaf.ndim > 1]
    lengths = {leaf.shape[1] for leaf in leaves if not leaf.is_floating_point()}

    def cut(leaf: Any, short: bool) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.ndim:
            return leaf
        few = leaf[:_SAMPLES]
        return few[:, :tokens] if short and few.ndim > 1 and few.shape[1] in lengths else few

    if lengths:
        yield trees.map_leaves(lambda leaf: cut(leaf, True), sample)
    yield trees.map_leaves(lambda leaf: cut(leaf, False), sample)
    yield sample


def _capture(model: nn.Module, blocks: Sequence[str], run: Callable[[nn.Module], object]) -> list[Sample]:
    invented = any(parameter.device.type != "cpu" for parameter in model.parameters())
    kinds: dict[object, list[str]] = {}
    for path in blocks:
        kinds.setdefault(_kind(model.get_submodule(path)), []).append(path)
    samples: dict[object, Sample] = {}
    outputs: dict[object, Any] = {}
    stand_in = _stand_in(model)

    def replace(path: str, kind: object) -> None:
        block, original = stand_in.get_submodule(path), model.get_submodule(path)
        compute = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if kind not in samples:
                own_args, own_kwargs = trees.map_leaves(lambda leaf: _keep(leaf, invented), (args, kwargs))
                paths = tuple(kinds[kind])
                samples[kind] = Sample(paths=paths, block=original, args=own_args, kwargs=own_kwargs)
                if len(samples) == len(kinds):
                    raise _AllSeen
                outputs[kind] = compute(*args, **kwargs)
            return outputs[kind]

        block.forward = forward

    for kind, paths in kinds.items():
        for path in paths:
            replace(path, kind)
    try:
        with cast("Any", torch.random).fork_rng(devices=[]), torch.enable_grad(), _Lookups():
            run(stand_in)
    except _AllSeen:
        return list(samples.values())
    unseen = next(paths[0] for kind, paths in kinds.items() if kind not in samples)
    raise ValueError(f"block {unseen} does not run")


class _Lookups(TorchFunctionMode):
    """Looks up rows of a table that is one repeated zero without making it whole, as torch would."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """See torch."""
        if func is F.embedding and not any(args[1].stride()):
            indices, table = args[:2]
            return table.select(0, 0).expand(*indices.shape, table.shape[1])
        return func(*args, **(kwargs or {}))


def _kind(block: nn.Module) -> object:
    shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in block.named_parameters(remove_duplicate=False))
    return type(block), shapes


def _stand_in(model: nn.Module) -> nn.Module:
    """A copy that shares parameters on the CPU, and has stand-ins without memory for others."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            memo[id(parameter)] = parameter
        else:
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            memo[id(parameter)] = nn.Parameter(zeros, requires_grad=parameter.is_floating_point())
    for buffer in model.buffers():
        if buffer.is_meta:
            memo[id(buffer)] = torch.zeros(buffer.shape, dtype=buffer.dtype)
        elif buffer.device.type != "cpu":
            memo[id(buffer)] = buffer.detach().cpu()
    stand_in = copy.deepcopy(model, memo)
    stand_in.eval()
    return stand_in


def _keep(leaf: Any, invented: bool) -> Any:
    """A copy that later use of the original does not change."""
    if not isinstance(leaf, torch.Tensor):
        return copy.deepcopy(leaf)
    kept = leaf.detach().clone()
    if not kept.is_floating_point():
        return kept
    return (torch.randn(kept.shape).to(kept.dtype) if invented else kept).requires_grad_(leaf.requires_grad)
