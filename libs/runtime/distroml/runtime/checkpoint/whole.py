"""The whole, unparallelised model, of which a rank may hold a part: its names, ties and the order of its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from distroml.runtime.checkpoint.layout import Rows
from distroml.runtime.checkpoint.tree import Path

RESIDUALS = "residuals"
"""Where a state has what compression keeps of each parameter's gradients, by its name: float32, of its shape."""

OWN = "own"
"""Where a state has what belongs to one rank of one world only, by that rank as text."""

OUTER = "outer"
"""Where a state has the outer momentum of replicas that step by themselves, by parameter; equal on every rank."""

ANCHOR = "anchor"
"""Where a state has their parameters of the last meeting, if that was before the state was saved."""

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")


def clean(name: str) -> str:
    """A parameter's name without the parts that wrappers inside the model add."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


@dataclass(frozen=True, slots=True)
class Whole:
    """What the model has, wherever it is held; the same on every rank.

    Attributes:
        place: every name of a parameter or buffer to its place in the model's order.
        first: names of tied parameters to the first one, which optimizers go by.
        rows: the order in which ranks hold the rows of some parameters.
    """

    place: Mapping[str, int]
    first: Mapping[str, str] = field(default_factory=dict[str, str])
    rows: Mapping[str, Rows] = field(default_factory=dict[str, Rows])

    @classmethod
    def of(cls, model: nn.Module, rows: Mapping[str, Rows] | None = None) -> Whole:
        """Of the whole model, which may be on `meta`."""
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        place: dict[str, int] = {}
        first: dict[str, str] = {}
        owner: dict[int, str] = {}
        for name, tensor in named:
            name = clean(name)
            place.setdefault(name, len(place))
            if owner.setdefault(id(tensor), name) != name:
                first[name] = owner[id(tensor)]
        return cls(place, first, rows or {})

    def in_order(self, names: Sequence[str]) -> list[str]:
        """Each name once, in the model's order."""
        return sorted(set(names), key=lambda name: (self.place.get(name, len(self.place)), name))

    def has(self, path: Path) -> bool:
        """Whether a leaf that this rank does not hold is another's: of the model, or kept of a parameter or a rank."""
        if path[:1] == (OWN,):
            return True
        if path[:1] == (RESIDUALS,):
            return len(path) == 2 and path[1] in self.place
        if path[:1] == ("model",) and len(path) == 2:
            return path[1] in self.place or str(path[1]).endswith("_extra_state")
        return path[:2] == ("optimizer", "state") and len(path) > 2 and path[2] in self.place

    def rows_of(self, path: Path, tensor: torch.Tensor) -> Rows | None:
        """The order of rows of a leaf: of a parameter, its residual, or optimizer state that has its shape."""
        if path[:1] in (("model",), (RESIDUALS,)) and len(path) == 2:
            return self.rows.get(cast(str, path[1]))
        if path[:2] == ("optimizer", "state") and len(path) == 4:
            rows = self.rows.get(cast(str, path[2]))
            if rows is not None and rows.dim < tensor.dim() and tensor.shape[rows.dim] == rows.count:
                return rows
        return None


NOTHING_ELSE = Whole({})
"""A rank that holds all there is."""
