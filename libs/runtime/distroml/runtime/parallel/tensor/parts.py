"""Activations inside a region that mend code which counts on whole ones.

Much code takes sizes from its input (`B, T, D = x.shape; q.view(B, T, heads, D // heads)`) or adds something with an
entry per head (a position bias) that came from outside. Between a column and its row such code meets a part of the
heads. A `Part` is a plain tensor that divides one entry of a shape which is `degree` times too large, and takes the
rank's entries of an operand that has all of them. Whether that is what the code means, the proof says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.tensor.sums import Ranks, enter

Mend = Literal["", "first", "last"]

_SHAPES = {"view", "reshape"}
_OPERANDS = {"add", "radd", "iadd", "sub", "mul", "rmul", "imul", "baddbmm", "masked_fill", "where"}
# What may be asked of an `OwnPart`: attributes, and what containers and printers of tensors need.
_HANDLING = frozenset(
    {
        *("__get__", "__set__", "__repr__", "__hash__", "detach", "as_subclass", "view_as", "data_ptr"),
        *("size", "dim", "numel", "stride", "element_size", "is_floating_point", "is_complex"),
        "register_hook",
    }
)
_ATTENTION = "scaled_dot_product_attention"


class OwnPart(torch.Tensor):
    """What a block returns beside its result with entries of this rank's heads only, such as attention weights.

    Gathering it would cost more than the block. It may be handed on and dropped; computing with it is an error.
    """

    holds = "the heads of one tp rank only: use tp=1 where a loss needs attention weights"

    @classmethod
    def __torch_function__(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _HANDLING:
            shape = next(tuple(value.shape) for value in args if isinstance(value, OwnPart))
            raise OwnPartUsed(f"{name} of a tensor of shape {shape} that holds {cls.holds}")
        return cast("Any", super()).__torch_function__(func, types, args, kwargs)


class OwnPartUsed(RuntimeError):
    """A model computes with what is this rank's alone; the message says what to do."""


def set_apart(result: Any) -> Any:
    """A block's result, with what is this rank's alone marked as such."""
    return trees.map_leaves(lambda leaf: leaf.detach().as_subclass(OwnPart) if isinstance(leaf, Part) else leaf, result)


class Part(torch.Tensor):
    """An activation between a column and its row; see the module."""


def part_type(ranks: Ranks, mend: Mend, batch: Callable[[], int]) -> type[torch.Tensor]:
    """The type of tensors between a column and its row on one rank.

    Args:
        ranks: the tp axis.
        mend: which entry of a shape is divided: the first or the last that is divisible, behind the dimensions that
            the tensor has already.
        batch: samples in the region's input, for heads that are folded into the batch.
    """

    class Mending(Part):
        @classmethod
        def __torch_function__(  # pyright: ignore[reportIncompatibleMethodOverride]
            cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            name, kwargs = getattr(func, "__name__", "").strip("_"), kwargs or {}
            if name in _SHAPES and len(args) > 1:
                shape = cast("tuple[Any, ...]", args[1] if isinstance(args[1], Sequence) else args[1:])
                args = (args[0], divided(args[0].shape, tuple(int(size) for size in shape), ranks.degree, mend))
            elif name in _OPERANDS:
                like = next(value for value in (*args, *kwargs.values()) if isinstance(value, Mending))
                args = tuple(_own(value, like, ranks, batch()) for value in args)
                kwargs = {key: _own(value, like, ranks, batch()) for key, value in kwargs.items()}
            elif name == _ATTENTION and len(args) > 2 and isinstance(args[0], Mending):
                query = args[0]
                args = (*args[:3], *(_own(value, query, ranks, batch()) for value in args[3:]))
                kwargs = {key: _own(value, query, ranks, batch()) for key, value in kwargs.items()}
            return cast("Any", super()).__torch_function__(func, types, args, kwargs)

    return Mending


def divided(have: Sequence[int], want: tuple[int, ...], degree: int, mend: Mend) -> tuple[int, ...]:
    """`want`, with one entry divided by `degree` where it asks for exactly that many times what `have` has."""
    if -1 in want or math.prod(want) != math.prod(have) * degree:
        return want
    kept = 0
    while kept < min(len(have), len(want)) and have[kept] == want[kept]:
        kept += 1
    places = [place for place in range(kept, len(want)) if want[place] % degree == 0]
    if not places:
        return want
    place = places[0] if mend == "first" else places[-1]
    return (*want[:place], want[place] // degree, *want[place + 1 :])


def _own(operand: Any, like: torch.Tensor, ranks: Ranks, batch: int) -> Any:
    """The rank's entries of an operand that has `degree` times as many as `like` in some dimension."""
    if not isinstance(operand, torch.Tensor) or isinstance(operand, type(like)):
        return operand
    for back in range(1, min(operand.ndim, like.ndim) + 1):
        dim, many, few = operand.ndim - back, operand.shape[-back], like.shape[-back]
        if few * ranks.degree != many:
            continue
        inside = enter(operand, ranks)
        if dim == 0 and like.ndim == operand.ndim == 3 and many % batch == 0 and batch > 1:
            # Batch and heads in one dimension, batch outermost.
            heads = inside.view(batch, many // batch, *operand.shape[1:])
            own = heads.narrow(1, ranks.rank * few // batch, few // batch)
            return own.reshape(few, *operand.shape[1:])
        return inside.narrow(dim, ranks.rank * few, few)
    return operand
