"""Who writes what where ranks hold different parts: they tell one another, at the beginning of a save."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from distroml.runtime.checkpoint.errors import UnsupportedState
from distroml.runtime.checkpoint.layout import Box, local_part, local_pieces
from distroml.runtime.checkpoint.plan import Held, assign, row_pieces, value_item, write_item
from distroml.runtime.checkpoint.tensors import check_storable
from distroml.runtime.checkpoint.tree import Leaf, Path, flatten
from distroml.runtime.checkpoint.whole import OWN, RESIDUALS, Whole

Gather = Callable[[object], Sequence[object]]
"""Hands every rank's object to all of them, by rank; a collective."""

OPENED: tuple[Path, ...] = (("model",), ("optimizer",), ("optimizer", "state"), (RESIDUALS,), (OWN,))
"""Subtrees that are never one leaf: a rank without tensors in them still has its own names there."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What one rank holds of one tensor; `cut` is equal where ranks cut the tensor in the same way."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    cut: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class _Description:
    """All that one rank holds: tensors, plain values, and the parameters' names of each group of its optimizer."""

    tensors: dict[str, _Part]
    values: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a rank hands to `Saver.begin`.

    Attributes:
        state: its state, whose parameter groups name the whole model's parameters.
        items: what it writes.
        whole: the model of which it holds a part.
    """

    state: dict[str, object]
    items: tuple[WriteItem, ...]
    whole: Whole


class Agreement:
    """Agrees on every save; what ranks hold is gathered again only where it changed on one of them.

    Args:
        rank: this process's rank in the generation.
        gather: the collective.
        whole: the model of which every rank holds a part.
    """

    def __init__(self, rank: int, gather: Gather, whole: Whole) -> None:
        self._rank, self._gather, self._whole = rank, gather, whole
        self._digests: list[object] = []
        self._items: tuple[WriteItem, ...] = ()
        self._groups: list[list[str]] = []

    def agree(self, state: Mapping[str, object]) -> Agreed:
        """Collective: every rank calls it with its own state, of `capture`.

        Raises:
            UnsupportedState: the ranks' parts do not make whole tensors, or their optimizers have different groups.
        """
        own = _describe(state, self._whole)
        digests = list(self._gather(hashlib.sha256(repr(own).encode()).hexdigest()))
        if digests != self._digests:
            everyone = [cast(_Description, one) for one in self._gather(own)]
            held = _held(everyone)
            self._groups = _merge_groups([one.groups for one in everyone], self._whole)
            self._items = tuple(assign(held, len(everyone))[self._rank])
            self._digests = digests
        return Agreed(self._with_groups(state), self._items, self._whole)

    def _with_groups(self, state: Mapping[str, object]) -> dict[str, object]:
        changed = dict(state)
        optimizer = cast("Mapping[str, object] | None", state.get("optimizer"))
        if optimizer is not None and self._groups:
            groups = cast("list[Mapping[str, object]]", optimizer["param_groups"])
            merged = [{**group, "params": names} for group, names in zip(groups, self._groups, strict=True)]
            changed["optimizer"] = {**optimizer, "param_groups": merged}
        return changed


def _describe(state: Mapping[str, object], whole: Whole) -> _Description:
    tensors: dict[str, _Part] = {}
    values: list[str] = []
    for fqn, leaf in flatten(state, OPENED).items():
        if isinstance(leaf.value, torch.Tensor):
            tensors[fqn] = _part(leaf, leaf.value, whole)
        else:
            values.append(fqn)
    optimizer = cast("Mapping[str, object]", state.get("optimizer") or {})
    groups = cast("Sequence[Mapping[str, Sequence[str]]]", optimizer.get("param_groups") or ())
    return _Description(tensors, tuple(values), tuple(tuple(group["params"]) for group in groups))


def _part(leaf: Leaf, tensor: torch.Tensor, whole: Whole) -> _Part:
    check_storable(local_part(tensor), leaf.fqn)
    shape = tuple(tensor.shape)
    rows = whole.rows_of(leaf.path, tensor)
    pieces = local_pieces(tensor, rows, leaf.fqn)
    if isinstance(tensor, DTensor):
        cut = f"{tuple(tensor.device_mesh.shape)} {tensor.placements}"
        boxes = tuple((one.offsets, one.sizes) for one in pieces if math.prod(one.sizes) or not math.prod(shape))
    else:
        cut, boxes = "", tuple(row_pieces(shape, tensor.dtype.itemsize))
    return _Part(tensor.dtype, shape, cut, boxes)


def _held(everyone: Sequence[_Description]) -> list[Held]:
    """Every write item with the ranks that hold its data, in an order that all ranks find alike."""
    held: list[Held] = []
    for fqn in sorted({fqn for one in everyone for fqn in one.tensors}):
        held += _held_tensor(fqn, {rank: one.tensors[fqn] for rank, one in enumerate(everyone) if fqn in one.tensors})
    for fqn in sorted({fqn for one in everyone for fqn in one.values}):
        holders = tuple(rank for rank, one in enumerate(everyone) if fqn in one.values)
        held.append(Held(value_item(fqn), 1, holders))
    return held


def _held_tensor(fqn: str, parts: Mapping[int, _Part]) -> list[Held]:
    kinds = {(part.dtype, part.shape) for part in parts.values()}
    if len(kinds) > 1:
        raise UnsupportedState(fqn, f"ranks hold it in different shapes or dtypes: {sorted(map(str, kinds))}")
    ((dtype, shape),) = kinds
    # Where stages that share a parameter cut it differently, the boxes of one way are taken.
    for cut in sorted({part.cut for part in parts.values()}, reverse=True):
        boxes: dict[Box, list[int]] = {}
        for rank, part in parts.items():
            for box in part.boxes if part.cut == cut else ():
                boxes.setdefault(box, []).append(rank)
        if sum(math.prod(sizes) for _, sizes in boxes) == math.prod(shape):
            return [_held_box(fqn, dtype, shape, box, ranks) for box, ranks in sorted(boxes.items())]
    raise UnsupportedState(fqn, "what the ranks hold of it does not make the whole tensor")


def _held_box(fqn: str, dtype: torch.dtype, shape: tuple[int, ...], box: Box, ranks: Sequence[int]) -> Held:
    kind = WriteItemType.TENSOR if box[1] == shape else WriteItemType.SHARD
    return Held(write_item(fqn, kind, shape, dtype, *box), math.prod(box[1]) * dtype.itemsize, tuple(ranks))


def _merge_groups(groups: Sequence[Sequence[Sequence[str]]], whole: Whole) -> list[list[str]]:
    counts = sorted({len(one) for one in groups})
    if len(counts) > 1:
        raise UnsupportedState(
            "optimizer.param_groups",
            f"ranks have {counts} parameter groups; make the same groups on every rank, empty where it holds none",
        )
    return [whole.in_order([name for one in groups for name in one[index]]) for index in range(counts[0])]
