"""The chain of repeated blocks in a model, found by where they stand and by running them once without memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from distroml.runtime.typed import fork_generators

# Models up to this size run for real where they decide by values (experts that choose tokens): half a gigabyte.
_REAL_UP_TO = 64_000_000
# A list of a few small modules beside the real blocks (heads, projections) is no part of the chain.
_LEAST_SHARE = 0.1


class NoChain(ValueError):
    """The model has no chain of repeated blocks; the message says what was looked for, and what was found instead."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Module paths of the blocks, in the order in which a forward pass runs them, each once."""

    blocks: tuple[str, ...]

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The blocks of a model of this structure."""
        return [model.get_submodule(path) for path in self.blocks]


def find_chain(model: nn.Module, run: Callable[[nn.Module], Any]) -> Chain:
    """The blocks of `model`: members of lists of like modules, one after the other.

    An encoder-decoder model has two such lists; its chain is both, in the order in which they run.

    Args:
        model: on any device, `meta` included; nothing of it is allocated or changed.
        run: calls it, on samples on the CPU.

    Raises:
        NoChain: there are no repeated blocks, or they don't run one after the other.
    """
    lists = _lists(model)
    if not lists:
        raise NoChain(
            f"{type(model).__name__} has no repeated blocks: no nn.ModuleList or nn.Sequential holds two or more "
            "modules of one class with parameters"
        )
    order, failure = _order(model, [path for paths in lists for path in paths], run)
    chains: list[list[str]] = []
    why = failure
    for paths in lists:
        times = [order.get(path, []) for path in paths]
        if any(not at for at in times):
            why = why or f"block {paths[next(i for i, at in enumerate(times) if not at)]} does not run"
        elif any(len(at) > 1 for at in times):
            why = f"block {paths[next(i for i, at in enumerate(times) if len(at) > 1)]} runs more than once in one pass"
        elif [at[0] for at in times] != sorted(at[0] for at in times):
            why = f"the blocks beside {paths[0]} do not run in their own order"
        else:
            chains.append(paths)
    chains.sort(key=lambda paths: order[paths[0]][0])
    for before, after in itertools.pairwise(chains):
        if order[before[-1]][0] > order[after[0]][0]:
            why = f"blocks {before[0]}... and {after[0]}... run in turns"
            chains = []
            break
    if not chains:
        raise NoChain(f"{type(model).__name__} has repeated blocks, but no chain of them: {why}")
    return Chain(tuple(path for paths in chains for path in paths))


def _lists(model: nn.Module) -> list[list[str]]:
    """Paths of the members of each list that may be a chain, none inside of another; small ones left out."""
    found: list[tuple[int, list[str]]] = []
    inside: list[str] = []
    for name, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
        if any(name.startswith(outer) for outer in inside) or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        members = [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]
        classes = {type(child) for _, child in members}
        size = sum(parameter.numel() for parameter in module.parameters())
        alike = len(members) >= 2 and len(classes) <= max(1, len(members) // 2)
        if alike and all(next(child.parameters(), None) is not None for _, child in members):
            found.append((size, [path for path, _ in members]))
            inside.append(f"{name}." if name else "")
    most = max((size for size, _ in found), default=0)
    return [paths for size, paths in found if size >= _LEAST_SHARE * most]


def _order(model: nn.Module, paths: Sequence[str], run: Callable[[nn.Module], Any]) -> tuple[dict[str, list[int]], str]:
    """When each of `paths` ran, and why the pass ended early if it did."""
    order: dict[str, list[int]] = {}
    count = 0

    def note(path: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            nonlocal count
            count += 1
            order.setdefault(path, []).append(count)

        return called

    handles = [model.get_submodule(path).register_forward_pre_hook(note(path)) for path in paths]
    try:
        run_without_weights(model, run, again=order.clear)
    except Exception as error:
        return order, f"the forward pass cannot be followed ({type(error).__name__}: {error})"
    finally:
        for handle in handles:
            handle.remove()
    return order, ""


def run_without_weights(
    model: nn.Module, run: Callable[[nn.Module], Any], again: Callable[[], None] = lambda: None
) -> None:
    """`run(model)` on weights that take no memory; small models that decide by values run on random ones instead.

    Args:
        model: on any device; unchanged.
        run: calls it.
        again: called before a second try.
    """
    failure: Exception | None = None
    with fork_generators(), torch.enable_grad():
        for make in states(model):
            try:
                functional_call(_Runner(model, run), make(model), ())
                return
            except Exception as error:
                failure = failure or error
                again()
    assert failure is not None
    raise failure


def states(model: nn.Module) -> list[Callable[[nn.Module], dict[str, torch.Tensor]]]:
    """Makers of weights to try a model with, by `functional_call` on a module that holds it as `model`."""
    small = sum(parameter.numel() for parameter in model.parameters()) <= _REAL_UP_TO
    return [_hollow_state, _random_state] if small else [_hollow_state]


def _hollow_state(model: nn.Module) -> dict[str, torch.Tensor]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return {
            f"model.{name}": _wanting_gradient(torch.empty(tensor.shape, dtype=tensor.dtype), tensor)
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
            if isinstance(tensor, nn.Parameter) or tensor.is_meta
        }


def _wanting_gradient(made: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    # So that whatever depends on a parameter can be told.
    return made.requires_grad_(isinstance(like, nn.Parameter) and made.is_floating_point())


def _random_state(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, nn.Parameter) or tensor.is_meta:
            made = torch.zeros(tensor.shape, dtype=tensor.dtype)
            if made.is_floating_point():
                made.normal_(0.0, 0.02, generator=generator)
            state[f"model.{name}"] = _wanting_gradient(made, tensor)
    return state


class _Runner(nn.Module):
    def __init__(self, model: nn.Module, run: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.model = model
        self._run = run

    def forward(self) -> Any:
        return self._run(self.model)
