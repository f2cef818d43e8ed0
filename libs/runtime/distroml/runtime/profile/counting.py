"""Counts what operations cost while a model runs: matrix products, memory traffic, tensors saved for the backward."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from distroml.runtime.parallel.recompute import KEPT

_aten = torch.ops.aten
# They write nothing that is read again: their result has no values yet.
_FREE = frozenset({_aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default})


@dataclass(slots=True)
class Pass:
    """Sums over one pass of one unit; `split_…` is the part of it that tp divides."""

    flops: float = 0.0
    split_flops: float = 0.0
    moved_bytes: float = 0.0
    split_moved_bytes: float = 0.0
    largest_bytes: float = 0.0
    kernels: int = 0


@dataclass(slots=True)
class Counted:
    """Everything counted of one unit, for all samples together."""

    forward: Pass = field(default_factory=Pass)
    backward: Pass = field(default_factory=Pass)
    saved: dict[str, float] = field(default_factory=lambda: {"whole": 0.0, "split": 0.0})
    kept: dict[str, float] = field(default_factory=lambda: {"whole": 0.0, "split": 0.0})
    cheap_moved_bytes: float = 0.0
    cheap_split_moved_bytes: float = 0.0
    reduced_bytes: float = 0.0
    collectives: int = 0


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(cast("Iterable[Any]", value))
    return found


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


class Counter(TorchDispatchMode):
    """Sorts the cost of every operation into units. Whoever uses it keeps `unit` and `inside` up to date.

    Attributes:
        units: by unit.
        unit: of the forward pass that runs now.
        inside: whether what runs now is divided by tp; "column" and "row" while such a layer runs.
        of_node: from autograd's running node to its unit and whether tp divides it; None in the forward pass.
    """

    def __init__(self, units: Iterable[int], free: Iterable[torch.Tensor]) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.units: Mapping[int, Counted] = {unit: Counted() for unit in units}
        self.unit = 0
        self.inside: bool | str = False
        self.of_node: Callable[[Any], tuple[int, bool]] | None = None
        self._free = {storage_of(tensor) for tensor in free}
        self._seen: set[int] = set()
        self._alive: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        node = torch._C._current_autograd_node()  # pyright: ignore[reportPrivateUsage]
        if self.of_node is not None:
            if node is None:  # pyright: ignore[reportUnnecessaryComparison] - None outside of the backward pass
                return out
            unit, split = self.of_node(node)
            self._count(self.units[unit].backward, func, args, kwargs or {}, out, split)
        elif self.of_node is None:
            counted = self.units[self.unit]
            moved = self._count(counted.forward, func, args, kwargs or {}, out, bool(self.inside))
            if func in KEPT:
                side = "split" if self.inside in (True, "column") else "whole"
                counted.kept[side] += sum(nbytes(tensor) for tensor in _tensors([out])[:1])
            else:
                counted.cheap_moved_bytes += moved
                counted.cheap_split_moved_bytes += moved if self.inside else 0.0
        return out

    def _count(self, into: Pass, func: Any, args: Any, kwargs: Any, out: Any, split: bool) -> float:
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            flops = float(formula(*args, **kwargs, out_val=out))
            into.flops += flops
            into.split_flops += flops if split else 0.0
        results = _tensors([out])
        given = _tensors(args)
        storages = {storage_of(tensor) for tensor in given}
        if func in _FREE or not results or (all(storage_of(r) in storages for r in results) and not _mutates(func)):
            return 0.0  # a view
        # What grows with the samples; parameters are read as well, but as often at any batch.
        moved = float(sum(nbytes(t) for t in (*given, *results) if storage_of(t) not in self._free))
        into.moved_bytes += moved
        into.split_moved_bytes += moved if split else 0.0
        into.largest_bytes = max(into.largest_bytes, float(sum(nbytes(t) for t in results)))
        into.kernels += 1
        return moved

    @contextmanager
    def saving(self) -> Generator[None]:
        """Within it, tensors that are saved for the backward pass count where they are saved first."""

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = storage_of(tensor)
            if storage not in self._free and storage not in self._seen:
                self._seen.add(storage)
                # A storage that is freed meanwhile would give its number to another one.
                self._alive.append(tensor.untyped_storage())
                divided = self.inside is True or self.inside == "row"
                self.units[self.unit].saved["split" if divided else "whole"] += tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield


def storage_of(tensor: torch.Tensor) -> int:
    """What tells a tensor's memory from another's."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


def _mutates(func: Any) -> bool:
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in func._schema.arguments)
