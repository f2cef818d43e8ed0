"""Walks through the autograd graph of one run, from what a stage gives to what it gets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from distroml.runtime.parallel.pipeline.doors import Edge, Place, Recorder
from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.fakes import creation_number


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that crosses a cut. `places` are in the order of execution; `trained`: a gradient flows back."""

    shape: torch.Size
    dtype: torch.dtype
    trained: bool
    places: tuple[Place, ...]


class Graph:
    """The autograd graph of one run, and the walks through it."""

    def __init__(self, recorder: Recorder, names: dict[int, str], trained: frozenset[str]) -> None:
        self._recorder = recorder
        self._names = names
        self._trained = trained
        self._starts = [start for start, _ in recorder.spans]
        self._flows: dict[Any, bool] = {}

    def walk(self, roots: Iterable[Edge], first: int) -> tuple[dict[Edge, set[int | None]], set[str]]:
        """From `roots` back to the start of block `first`.

        Returns:
            Tensors made before, each with the blocks that use it (None: code between blocks), and names of parameters.
        """
        start = self._starts[first] if first else -1
        crossing: dict[Edge, set[int | None]] = {}
        parameters: set[str] = set()
        todo: list[Any] = []
        seen: set[Any] = set()
        for edge in roots:
            # What goes through untouched is read by nobody here.
            if not self._early(edge, start, crossing, (), parameters):
                todo.append(edge[0])
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            user = (self._block_of(creation_number(node)),)
            todo += [
                edge[0]
                for edge in node.next_functions
                if edge[0] is not None and not self._early(edge, start, crossing, user, parameters)
            ]
        return crossing, parameters

    def _early(
        self,
        edge: Edge,
        start: int,
        crossing: dict[Edge, set[int | None]],
        user: tuple[int | None, ...],
        parameters: set[str],
    ) -> bool:
        if hasattr(edge[0], "variable"):
            name = self._names.get(id(edge[0].variable))
            if name is not None:
                parameters.add(name)
            return True
        if creation_number(edge[0]) < start:
            crossing.setdefault((edge[0], edge[1]), set()).update(user)
            return True
        return False

    def _block_of(self, number: int) -> int | None:
        for block, (start, stop) in enumerate(self._recorder.spans):
            if start <= number < stop:
                return block
        return None

    def value(self, edge: Edge, users: set[int | None], first: int) -> Value:
        """The crossing tensor as something that can be sent to the stage that begins at block `first`."""
        blocks = self._recorder.blocks
        places = tuple(self._recorder.places.get(edge, ()))
        cut = f"the cut before block {blocks[first]}"
        if not any(place.block < first or (place.block == first and place.side == "argument") for place in places):
            raise NoCut(
                f"a tensor made by {edge[0].name()} before {cut} is used {self._where(users)} behind it, but is "
                "neither argument nor result of a block, so that it cannot be followed; hand it to the blocks as an "
                "argument"
            )
        for user in users:
            reached = (
                any(place.block < first and place.side == "result" for place in places)
                if user is None
                else any(place.block == user and place.side == "argument" for place in places)
            )
            if not reached:
                raise NoCut(
                    f"a tensor made by {edge[0].name()} before {cut} is used {self._where({user})} on another way than "
                    "through the blocks' arguments and results, so that it cannot be handed over"
                )
        tensor = self._recorder.tensors[edge]
        return Value(tensor.shape, tensor.dtype, self._is_trained(edge[0]), places)

    def _where(self, users: set[int | None]) -> str:
        named = sorted(self._recorder.blocks[user] for user in users if user is not None)
        outside = ["by code outside of the blocks"] if None in users else []
        return " and ".join(outside + [f"inside block {name}" for name in named])

    def _is_trained(self, node: Any) -> bool:
        todo, seen = [node], {node}
        while todo:
            for following, _ in todo.pop().next_functions:
                if following is None or following in seen:
                    continue
                if hasattr(following, "variable"):
                    if self._names.get(id(following.variable)) in self._trained:
                        return True
                else:
                    seen.add(following)
                    todo.append(following)
        return False
