"""Hidden states divided along the sequence: what a block holds beside its split regions, on one rank.

Megatron's sequence parallelism (Korthikanti et al., arXiv:2205.05198, section 4.2.2): where tensor parallelism would
hold copies, each rank holds its stretch of the sequence. A column gathers what enters it, and a row sums its outputs
and keeps the rank's stretch of them: together they send what the one sum of `sums.leave` does.

A block's code takes sizes from what it is called with. A `Stretch` is a plain tensor that tells the whole sequence's
length, so that what the code makes of a column's output is right; whether all else is, the proof says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from distroml.runtime.parallel.tensor.parts import OwnPart
from distroml.runtime.parallel.tensor.plan import Door
from distroml.runtime.parallel.tensor.streams import own_numbers
from distroml.runtime.parallel.tensor.sums import Ranks, own_part

_SHAPES = {"view", "reshape"}
_SHAPE = cast("Any", torch.Tensor).shape


class NotDivisible(ValueError):
    """A batch's sequence has no even parts; the message says what to do."""


class NotAlong(RuntimeError):
    """A block does not give its rank's stretch of the sequence; the message says what it gives."""


class Stretch(torch.Tensor):
    """A rank's stretch of a block's hidden state; see the module."""


class Passed(OwnPart):
    """A stretch on its way from one block to the next: whoever else computes with it would take it for the whole."""

    holds = (
        "one tp rank's stretch of the sequence only: use sequence_parallel=no where a loss needs inner hidden states"
    )


def stretch_type(degree: int) -> type[Stretch]:
    """The type of stretches over `degree` ranks."""

    class Whole(Stretch):
        @classmethod
        def __torch_function__(  # pyright: ignore[reportIncompatibleMethodOverride]
            cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs, plain = kwargs or {}, cast("Any", super()).__torch_function__
            name = getattr(func, "__name__", "")
            if name == "size" or (name == "__get__" and func.__self__ is _SHAPE):
                told = _told(plain(_SHAPE.__get__, types, args[:1]), degree)
                dim = kwargs.get("dim", args[1] if len(args) > 1 and name == "size" else None)
                return told if dim is None else told[int(dim)]
            if name in _SHAPES and len(args) > 1 and isinstance(args[0], Stretch):
                want = cast("tuple[Any, ...]", args[1] if isinstance(args[1], Sequence) else args[1:])
                have = plain(_SHAPE.__get__, types, args[:1])
                args = (args[0], own_sizes(have, tuple(int(size) for size in want), degree))
            return plain(func, types, args, kwargs)

    return Whole


def _told(own: tuple[int, ...], degree: int) -> torch.Size:
    return torch.Size((own[0], own[1] * degree, *own[2:]) if len(own) == 3 else own)


def own_sizes(have: Sequence[int], want: tuple[int, ...], degree: int) -> tuple[int, ...]:
    """`want`, a shape for the whole sequence, for a stretch of the shape `have`."""
    if len(have) == 3 and want[:2] == (have[0], have[1] * degree):
        return (want[0], have[1], *want[2:])
    tokens = math.prod(have[:-1])
    if len(want) == 2 and want[0] == tokens * degree:
        return (tokens, want[1])
    if -1 not in want and len(want) > 2 and math.prod(want) == math.prod(have) * degree and want[1] % degree == 0:
        return (want[0], want[1] // degree, *want[2:])
    return want


_Change = Callable[[torch.Tensor], torch.Tensor]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, forth: _Change, back: _Change) -> torch.Tensor:
        ctx.back = back
        return forth(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return ctx.back(gradients[0]), None, None


def _exchange(tensor: torch.Tensor, forth: _Change, back: _Change) -> torch.Tensor:
    if not (tensor.requires_grad and torch.is_grad_enabled()):
        return forth(tensor)
    return cast("Any", _Exchange).apply(tensor, forth, back)


@dataclass(slots=True)
class Along:
    """The sequence on one rank: whether it is divided in the pass that runs, and what crosses from and to the whole.

    Attributes:
        ranks: the tp axis.
        keeps_own: the backward pass gathers anew what entered columns, instead of keeping it gathered.
        divided: hidden states of the block that runs are stretches.
    """

    ranks: Ranks
    keeps_own: bool = False
    divided: bool = False
    kind: type[Stretch] = field(init=False)

    def __post_init__(self) -> None:
        self.kind = stretch_type(self.ranks.degree)

    def begin(self, whole: torch.Tensor) -> None:
        """A run of blocks begins with this hidden state.

        Raises:
            NotDivisible: it has no even parts, and gradients are wanted.
        """
        length, degree = whole.shape[1], self.ranks.degree
        self.divided = length % degree == 0
        if not self.divided and torch.is_grad_enabled():
            raise NotDivisible(
                f"a sequence of {length} is not divisible by tp {degree}: pad batches to a multiple of {degree} in "
                "`collate`, or use sequence_parallel=no; without gradients any length works"
            )

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's stretch of copies; its gradient is the whole one."""
        return _exchange(whole, self._own, partial(self.ranks.gather, dim=1))

    def collect(self, own: torch.Tensor) -> torch.Tensor:
        """The whole from stretches; ranks have the same gradient of it."""
        return _exchange(own, partial(self.ranks.gather, dim=1), self._own)

    def enter(self, own: torch.Tensor) -> torch.Tensor:
        """The whole from stretches, for use in a split region; the ranks' gradients of it are summed."""
        plain = own.as_subclass(torch.Tensor)
        dim = _along(plain)
        return _exchange(plain, partial(self.ranks.gather, dim=dim), partial(self.ranks.scatter, dim=dim))

    def leave(self, part: torch.Tensor) -> torch.Tensor:
        """This rank's stretch of the sum over the ranks' results of a split region."""
        dim = _along(part)
        own = _exchange(part, partial(self.ranks.scatter, dim=dim), partial(self.ranks.gather, dim=dim))
        return own.as_subclass(self.kind)

    def _own(self, whole: torch.Tensor) -> torch.Tensor:
        return own_part(whole, 1, self.ranks).clone(memory_format=torch.contiguous_format)


def _along(tensor: torch.Tensor) -> int:
    # [batch, sequence, hidden], or tokens in one dimension, whose order is of no meaning inside of a region.
    return 1 if tensor.ndim > 2 else 0


class Kept:
    """A stretch that the backward pass needs gathered: kept as it is, and gathered once for all that want it there.

    Korthikanti et al. do the same: else what enters columns would be most of what ranks keep in whole.
    """

    def __init__(self, own: torch.Tensor, whole: torch.Tensor, along: Along) -> None:
        self._own = own.detach().as_subclass(torch.Tensor)
        self._layout = whole.untyped_storage().data_ptr()
        self._along = along
        self._wanted = 0
        self._whole: torch.Tensor | None = None

    def covers(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor`, which the forward pass wants kept, is a view of what was gathered."""
        return tensor.untyped_storage().data_ptr() == self._layout

    def ask(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """What gives a tensor of these values when it is called, once, in the backward pass."""
        self._wanted += 1
        size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        return lambda: self._gathered().as_strided(size, stride, offset)

    def _gathered(self) -> torch.Tensor:
        whole = self._whole
        if whole is None:
            whole = self._along.ranks.gather(self._own, _along(self._own))
        self._wanted -= 1
        self._whole = whole if self._wanted > 0 else None
        return whole


def keep_own(kept: Iterable[Kept]) -> AbstractContextManager[Any]:
    """Within it operations that keep a gathered tensor for their backward pass keep the rank's stretch of it."""

    def pack(tensor: torch.Tensor) -> torch.Tensor | Callable[[], torch.Tensor]:
        found = next((one for one in kept if one.covers(tensor)), None)
        return tensor if found is None else found.ask(tensor)

    def unpack(packed: torch.Tensor | Callable[[], torch.Tensor]) -> torch.Tensor:
        return packed if isinstance(packed, torch.Tensor) else packed()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


@dataclass(frozen=True, slots=True)
class Border:
    """A block's way in and out, where hidden states are divided.

    Attributes:
        along: shared by the blocks of a rank.
        door: where the hidden state comes in and goes out.
        opens: it comes in whole.
        closes: it goes out whole.
        random: the block draws random numbers while it trains.
    """

    along: Along
    door: Door
    opens: bool
    closes: bool
    random: bool

    def enter(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the block is called with, its hidden state a stretch."""
        place = self.door.argument
        hidden = args[place] if isinstance(place, int) else kwargs[place]
        if self.opens:
            self.along.begin(hidden)
        elif torch.is_grad_enabled():
            # Also where the block is computed again, after whatever other pass. Without gradients blocks run in order.
            self.along.divided = True
        if not self.along.divided:
            return args, kwargs
        own = self.along.take(hidden) if self.opens else hidden.as_subclass(torch.Tensor)
        own = own.as_subclass(self.along.kind)
        if isinstance(place, int):
            return (*args[:place], own, *args[place + 1 :]), kwargs
        return args, {**kwargs, place: own}

    def numbers(self, block: nn.Module) -> AbstractContextManager[None]:
        """Within it random numbers are the rank's own: what is dropped from is a stretch, or the rank's heads."""
        if not (self.random and block.training and self.along.divided):
            return nullcontext()
        return own_numbers(next(block.parameters()).device, self.along.ranks.rank)

    def leave(self, result: Any) -> Any:
        """What the block returns, its hidden state for whoever comes next.

        Raises:
            NotAlong: the block gives something else than one stretch.
        """
        if not self.along.divided:
            return result
        place = self.door.result
        own = result if place is None else result[place]
        if not isinstance(own, Stretch):
            raise NotAlong(f"the block's hidden state comes out as a {type(own).__name__}, not as stretches")
        own = own.as_subclass(torch.Tensor)
        given = self.along.collect(own) if self.closes else own.as_subclass(Passed)
        if place is None:
            return given
        others = [*result[:place], *result[place + 1 :]]
        if any(isinstance(other, Stretch) for other in others):
            raise NotAlong("the block hands on a second value that is divided along the sequence")
        return type(result)((*result[:place], given, *result[place + 1 :]))
