"""What is seen at the doors of a chain's blocks in one run: tensors that go in and out, and the form of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.fakes import now

Edge = tuple[Any, int]
"""An autograd node, and which of its outputs."""

_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is seen: a leaf of a block's `(args, kwargs)` or of its result."""

    block: int
    side: Literal["argument", "result"]
    path: trees.Path


@dataclass(frozen=True, slots=True)
class Hole:
    """A tensor in a foreign block's result that nobody will read."""

    shape: torch.Size
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Argument:
    """A leaf of a foreign block's result that is one of its arguments."""

    path: trees.Path


@dataclass(frozen=True, slots=True)
class Result:
    """What a block gives back: for each leaf a `Hole`, an `Argument` or a plain constant."""

    leaves: dict[trees.Path, Any]
    shape: trees.Shape


def edge_of(tensor: torch.Tensor) -> Edge | None:
    """Where a tensor comes from; None where no gradient goes."""
    return None if tensor.grad_fn is None else (tensor.grad_fn, tensor.output_nr)


class Recorder:
    """Hooks on the blocks of a model that note every tensor at their doors."""

    def __init__(self, model: nn.Module, blocks: Sequence[str]) -> None:
        self.blocks = blocks
        self.spans: list[tuple[int, int]] = []
        self.results: list[Result] = []
        self.places: dict[Edge, list[Place]] = {}
        self.tensors: dict[Edge, torch.Tensor] = {}
        self._inside: int | None = None
        self._arguments: dict[trees.Path, Any] = {}
        self._start = 0
        self._handles: list[Any] = []
        for number, path in enumerate(blocks):
            block = model.get_submodule(path)
            self._handles.append(block.register_forward_pre_hook(self._enter(number), with_kwargs=True, prepend=True))
            self._handles.append(block.register_forward_hook(self._leave(number), with_kwargs=True))

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _note(self, number: int, side: Literal["argument", "result"], leaves: dict[trees.Path, Any]) -> None:
        for path, leaf in leaves.items():
            edge = edge_of(leaf) if isinstance(leaf, torch.Tensor) else None
            if edge is not None:
                self.places.setdefault(edge, []).append(Place(number, side, path))
                self.tensors[edge] = leaf

    def _enter(self, number: int) -> Callable[..., None]:
        def enter(block: nn.Module, args: Any, kwargs: Any) -> None:
            name = self.blocks[number]
            if self._inside is not None:
                raise NoCut(f"block {name} runs inside block {self.blocks[self._inside]}")
            done = len(self.results)
            if number < done:
                raise NoCut(f"block {name} runs twice in one forward pass, so that no stage can hold it alone")
            if number > done:
                raise NoCut(f"block {name} runs before block {self.blocks[done]}, in another order than the chain's")
            self._inside = number
            self._arguments, _ = trees.flatten((args, kwargs))
            self._note(number, "argument", self._arguments)
            self._start = now()

        return enter

    def _leave(self, number: int) -> Callable[..., None]:
        def leave(block: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            self.spans.append((self._start, now()))
            leaves, shape = trees.flatten(result)
            sources = {id(leaf): path for path, leaf in self._arguments.items() if not isinstance(leaf, _PLAIN)}
            template: dict[trees.Path, Any] = {}
            for path, leaf in leaves.items():
                if id(leaf) in sources:
                    template[path] = Argument(sources[id(leaf)])
                elif isinstance(leaf, torch.Tensor):
                    template[path] = Hole(leaf.shape, leaf.dtype)
                elif isinstance(leaf, _PLAIN):
                    template[path] = leaf
                else:
                    raise NoCut(
                        f"block {self.blocks[number]} returns a {type(leaf).__name__} at {trees.words(path)}, "
                        "which cannot be followed; blocks must return tensors in tuples, lists or dicts"
                    )
            self.results.append(Result(template, shape))
            self._note(number, "result", leaves)
            self._inside, self._arguments = None, {}

        return leave
