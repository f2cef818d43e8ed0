"""What ranks exchange in place of gradients, bucket by bucket, where the optimizer asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import nn

from distroml.runtime.compress import Turn
from distroml.runtime.compress.optim import DGC, CompressedOptimizer, OneBitAdam
from distroml.runtime.parallel.buffers import Buffer


class Substitute(Protocol):
    """Changes what a bucket's exchange is given; called on the exchange's thread, between a step's begin and its waits.

    `needs_all`: exchanges may not begin before `ready` was called, after the backward passes.
    """

    needs_all: bool

    def ready(self, norm: Callable[[], torch.Tensor], unit: torch.Tensor) -> None:
        """All of this rank's gradients are there; `norm()` is that of the raw ones, `unit` their global count."""
        ...

    def before(self, buffer: Buffer, work: torch.Tensor, turn: Turn) -> None:
        """`work`, this rank's raw gradients, becomes what to exchange in their place."""
        ...

    def after(self, buffer: Buffer) -> None:
        """The exchange of a bucket is over."""
        ...


class Momenta:
    """This rank's shares of the next momentum of 1-bit Adam, once its warm-up is over."""

    needs_all = False

    def __init__(self, optimizer: OneBitAdam, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        self._optimizer = optimizer
        self._parameters = parameters

    def ready(self, norm: Callable[[], torch.Tensor], unit: torch.Tensor) -> None:
        """See `Substitute`."""

    def before(self, buffer: Buffer, work: torch.Tensor, turn: Turn) -> None:
        """See `Substitute`."""
        for segment in buffer.spec.segments:
            part = work[segment.offset : segment.offset + segment.numel]
            self._optimizer.share(self._parameters[segment.index][1], part, turn)

    def after(self, buffer: Buffer) -> None:
        """See `Substitute`."""


class Velocities:
    """Each rank's own velocity, by deep gradient compression; kept with the bucket."""

    def __init__(self, optimizer: DGC, world_size: int) -> None:
        self._optimizer = optimizer
        self._world_size = world_size
        self._factor: torch.Tensor | None = None
        self.needs_all = optimizer.clip is not None

    def ready(self, norm: Callable[[], torch.Tensor], unit: torch.Tensor) -> None:
        """See `Substitute`."""
        self._factor = self._optimizer.factor(norm(), unit, self._world_size) if self.needs_all else None

    def before(self, buffer: Buffer, work: torch.Tensor, turn: Turn) -> None:
        """See `Substitute`."""
        if buffer.velocity is None:
            buffer.velocity = torch.zeros_like(work)
        if self._factor is not None:
            work.mul_(self._factor)
        self._optimizer.correction.before(work, buffer.velocity, turn.unit)

    def after(self, buffer: Buffer) -> None:
        """See `Substitute`."""
        # Where this rank is alone everything is told at once: that is SGD with momentum, and nothing to mask.
        if buffer.velocity is not None and buffer.state.residual is not None:
            self._optimizer.correction.after(buffer.velocity, buffer.state)


def substitute_of(
    optimizer: CompressedOptimizer, parameters: Sequence[tuple[str, nn.Parameter]], world_size: int
) -> Substitute:
    """What this optimizer's ranks exchange. Raises `TypeError` for one that is not known here."""
    match optimizer:
        case OneBitAdam():
            return Momenta(optimizer, parameters)
        case DGC():
            return Velocities(optimizer, world_size)
        case _:
            raise TypeError(f"nothing is known of what {type(optimizer).__name__} exchanges")
