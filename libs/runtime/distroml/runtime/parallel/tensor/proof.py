"""Proof of a split on one block: all tp ranks are played by threads, and must give what the undivided block gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.tensor.apply import install
from distroml.runtime.parallel.tensor.calls import BlockCall
from distroml.runtime.parallel.tensor.layout import Split
from distroml.runtime.parallel.tensor.regions import Regions
from distroml.runtime.parallel.tensor.sample import AloneBlock, random_block

# Models compute norms and softmaxes in float32 even where their weights are float64.
_TOLERANCE = 2e-5
_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A split of one block's layers, by their paths in it, with the attributes to change."""

    splits: dict[str, Split]
    overrides: dict[str, dict[str, Any]]


class _Together:
    """An exchange between threads."""

    def __init__(self, degree: int) -> None:
        self._barrier = threading.Barrier(degree)
        self._parts: dict[int, torch.Tensor] = {}

    def of(self, rank: int) -> _Seat:
        return _Seat(self, rank)

    def sum(self, rank: int, tensor: torch.Tensor) -> torch.Tensor:
        self._parts[rank] = tensor
        self._barrier.wait(_LIMIT_S)
        total = torch.stack([self._parts[other] for other in sorted(self._parts)]).sum(0)
        self._barrier.wait(_LIMIT_S)
        return total

    def abort(self) -> None:
        self._barrier.abort()


@dataclass(frozen=True, slots=True)
class _Seat:
    together: _Together
    rank: int

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.together.sum(self.rank, tensor)


@dataclass(frozen=True, slots=True)
class _Outcome:
    results: list[torch.Tensor]
    inputs: list[torch.Tensor | None]
    parameters: dict[str, torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a trial is wrong; "" where it is right.

    `summed` are parameters that stay whole, but see only their rank's share of the work (norms of single heads): their
    gradients are right once they are summed along tp.
    """

    failure: str
    summed: frozenset[str] = frozenset()


def prove(block: nn.Module, call: BlockCall, trial: Trial, degree: int) -> Verdict:
    """Whether the split block gives the undivided block's results and gradients on every rank."""
    whole = _run(random_block(block, call))
    if isinstance(whole, str):
        return Verdict(whole)
    together = _Together(degree)
    outcomes: list[_Outcome | str] = ["it did not end"] * degree

    def play(rank: int) -> None:
        alone = random_block(block, call)
        try:
            with torch.random.fork_rng(devices=[]):
                _take(alone.module, trial.splits, rank, degree)
                install(alone.module, trial.splits, trial.overrides, together.of(rank), Regions(0))
                outcomes[rank] = _run(alone)
        except Exception as error:
            outcomes[rank] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if isinstance(outcomes[rank], str):
            together.abort()

    threads = [threading.Thread(target=play, args=(rank,), daemon=True) for rank in range(degree)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * _LIMIT_S)
    told = [one for one in outcomes if isinstance(one, str)]
    if told:
        return Verdict(next((one for one in told if "BrokenBarrier" not in one), told[0]))
    return _difference(whole, [one for one in outcomes if isinstance(one, _Outcome)], trial.splits, degree)


def _take(module: nn.Module, splits: Mapping[str, Split], rank: int, degree: int) -> None:
    for name, split in splits.items():
        layer = module.get_submodule(name)
        weight: Any = layer.weight
        layer.weight = nn.Parameter(split.take(weight.detach(), split.weight_dim, rank, degree))
        bias: Any = layer.bias
        if bias is not None and split.kind == "column":
            layer.bias = nn.Parameter(split.take(bias.detach(), 0, rank, degree))


def _run(alone: AloneBlock) -> _Outcome | str:
    try:
        result = alone.module(*alone.args, **alone.kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    results = [leaf for leaf in trees.leaves_of(result) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    weights = [torch.linspace(0.5, 1.5, leaf.numel(), dtype=leaf.dtype).reshape(leaf.shape) for leaf in results]
    sum((leaf * weight).sum() for leaf, weight in zip(results, weights, strict=True)).backward()  # type: ignore[union-attr]
    parameters = {name: parameter.grad for name, parameter in alone.module.named_parameters()}
    return _Outcome([leaf.detach() for leaf in results], [leaf.grad for leaf in alone.flowing], parameters)


def _difference(whole: _Outcome, parts: list[_Outcome], splits: Mapping[str, Split], degree: int) -> Verdict:
    for part in parts:
        if len(part.results) != len(whole.results):
            return Verdict("the divided block returns another number of tensors")
        for number, (own, right) in enumerate(zip(part.results, whole.results, strict=True)):
            if why := _unequal(own, right):
                return Verdict(f"result {number} of the block {why}")
        for number, (own, right) in enumerate(zip(part.inputs, whole.inputs, strict=True)):
            if why := _unequal(own, right):
                return Verdict(f"the gradient of input {number} {why}")
    summed: set[str] = set()
    for name, right in whole.parameters.items():
        path, _, kind = name.rpartition(".")
        split = splits.get(path)
        owns = [part.parameters[name] for part in parts]
        if split is not None and (kind == "weight" or split.kind == "column"):
            dim = split.weight_dim if kind == "weight" else 0
            dealt = _all(owns, lambda found, dim=dim: torch.cat(found, dim))
            owns = [split.restore(dealt, dim, degree) if dealt is not None else None]
        elif any(_unequal(own, right) for own in owns):
            owns = [_all(owns, lambda found: torch.stack(found).sum(0))]
            summed.add(name)
        for own in owns:
            if why := _unequal(own, right):
                return Verdict(f"the gradient of {name} {why}")
    return Verdict("", frozenset(summed))


def _all(parts: list[torch.Tensor | None], join: Callable[[list[torch.Tensor]], torch.Tensor]) -> torch.Tensor | None:
    found = [part for part in parts if part is not None]
    return join(found) if len(found) == len(parts) else None


def _unequal(own: torch.Tensor | None, right: torch.Tensor | None) -> str:
    if own is None or right is None:
        return "" if own is right else "is missing"
    if own.shape != right.shape:
        return f"has shape {tuple(own.shape)} instead of {tuple(right.shape)}"
    error = float((own - right).double().norm())
    size = float(right.double().norm())
    return "" if error <= _TOLERANCE * size + 1e-9 else f"differs by {error / max(size, 1e-30):.1e} of its norm"
