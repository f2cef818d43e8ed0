"""Which linear layers of a block follow one another, from autograd's graph of one run on tiny random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distroml.runtime.parallel.tensor.calls import BlockCall
from distroml.runtime.parallel.tensor.layers import is_linear
from distroml.runtime.parallel.tensor.sample import random_block


@dataclass(frozen=True, slots=True)
class Branch:
    """Layers that can be divided together: what `columns` give is used by `rows` only. Paths inside of the block."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'/'.join(self.columns)} -> {'/'.join(self.rows)}"


def branches_of(block: nn.Module, call: BlockCall) -> list[Branch]:
    """The block's branches, found by which layer's result reaches which other layer.

    Along each way through a block, columns and rows take turns: what attention or a feed-forward part takes in is
    divided by columns, and what it adds to the residual stream is summed by a row.
    """
    parents = _parents(block, call)
    level: dict[str, int] = {}
    for name in parents:  # in the order of execution: parents come first
        level[name] = max((level[parent] + 1 for parent in parents[name]), default=0)
    found: list[Branch] = []
    rows_of: dict[str, list[str]] = {}
    for name, before in parents.items():
        if level[name] % 2 == 1:
            for parent in _nearest(before, parents):
                if level[parent] % 2 == 0:
                    rows_of.setdefault(parent, []).append(name)
    taken: set[str] = set()
    for column in rows_of:
        if column in taken:
            continue
        rows = set(rows_of[column])
        columns = {other for other, its in rows_of.items() if rows & set(its)}
        rows = {row for other in columns for row in rows_of[other]}
        taken |= columns
        found.append(Branch(tuple(n for n in parents if n in columns), tuple(n for n in parents if n in rows)))
    return found


def _nearest(ancestors: set[str], parents: dict[str, set[str]]) -> set[str]:
    """Those of `ancestors` that are reached without passing another of them."""
    return {one for one in ancestors if not any(one in parents[other] for other in ancestors)}


def _parents(block: nn.Module, call: BlockCall) -> dict[str, set[str]]:
    """For each linear layer that runs, in that order, all layers whose results reach its input."""
    alone = random_block(block, call)
    made: dict[Any, str] = {}
    parents: dict[str, set[str]] = {}
    handles: list[Any] = []

    def watch(name: str) -> Callable[..., None]:
        def called(module: nn.Module, args: Any, result: Any) -> None:
            x = args[0]
            parents.setdefault(name, set()).update(_reached(x.grad_fn, made))
            made[result.grad_fn] = name

        return called

    for name, module in alone.module.named_modules():
        if is_linear(module):
            handles.append(module.register_forward_hook(watch(name)))
    with torch.random.fork_rng():
        alone.module(*alone.args, **alone.kwargs)
    for handle in handles:
        handle.remove()
    return parents


def _reached(start: Any, made: dict[Any, str]) -> set[str]:
    todo, seen, found = [start], {start}, set[str]()
    while todo:
        node = todo.pop()
        if node is None:
            continue
        if node in made:
            found.add(made[node])
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)
    return found
