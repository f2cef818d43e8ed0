"""Where weights come from: one protocol, read by name and slice, so that nobody needs to hold the whole model."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import nn

from distroml.runtime.checkpoint.whole import clean
from distroml.runtime.parallel.weights.errors import WeightsMismatch

log = logging.getLogger(__name__)

Index = tuple[slice, ...]
"""A box of a tensor: one slice with step 1 per dimension; `()` is all of it."""


TURN_S = 120.0
"""How long a process waits for its turn to build a model for real."""

_POLL_S = 0.05


class WeightSource(Protocol):
    """The weights of the whole, unparallelised model, by the names of its parameters and buffers."""

    def names(self) -> Sequence[str]:
        """Every name, in the model's own order; each name of a tied parameter."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The whole tensor's shape; raises `WeightsMismatch` for an unknown name."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """Its dtype; raises `WeightsMismatch` for an unknown name."""
        ...

    def read(self, name: str, index: Index = ()) -> torch.Tensor:
        """That part of it, on the CPU; the caller only reads it, and drops it soon."""
        ...

    def close(self) -> None:
        """Give back what was kept for the next read. Reading on is allowed and costs as much as the first time."""
        ...


class LiveSource:
    """The weights of a model that is in memory; reads are views, nothing is copied."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = named_tensors(model)

    def names(self) -> Sequence[str]:
        """See `WeightSource`."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `WeightSource`."""
        return tuple(self._found(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """See `WeightSource`."""
        return self._found(name).dtype

    def read(self, name: str, index: Index = ()) -> torch.Tensor:
        """See `WeightSource`."""
        return self._found(name).detach()[index].cpu()

    def close(self) -> None:
        """Nothing is kept beyond the model itself."""

    def _found(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise unknown(name)
        return self._tensors[name]


class Turn:
    """One process of this machine and user at a time, by a lock on a file that dies with its holder.

    It only spares memory: who waits longer than `TURN_S` goes on without it rather than hang, and so does who cannot
    have a lock at all, after one warning. Within a process turns don't wait for one another.
    """

    _file: ClassVar[int | None] = None
    _holders: ClassVar[int] = 0
    _warned: ClassVar[bool] = False

    def __init__(self) -> None:
        self._taken = False

    def take(self) -> None:
        """Wait for the turn."""
        if self._taken:
            return
        self._taken = True
        Turn._holders += 1
        if Turn._holders > 1:
            return
        path = Path(tempfile.gettempdir()) / f"distroml-build-{os.getuid()}.lock"
        try:
            Turn._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            _lock(Turn._file)
        except OSError as error:
            # A network file system without a lock service, a file of somebody else's, a full or read-only disk.
            if not Turn._warned:
                Turn._warned = True
                log.warning(
                    "processes of this machine may build their models at the same time, which takes more memory: %s "
                    "cannot be locked (%s); let TMPDIR name a folder on a local disk",
                    path,
                    error,
                )

    def give(self) -> None:
        """End the turn; nothing where it was not taken."""
        if not self._taken:
            return
        self._taken = False
        Turn._holders -= 1
        if Turn._holders == 0 and Turn._file is not None:
            os.close(Turn._file)
            Turn._file = None

    def __enter__(self) -> Turn:
        self.take()
        return self

    def __exit__(self, *error: object) -> None:
        self.give()


def _lock(file: int) -> None:
    """Return with the lock, or without it after `TURN_S`. Raises `OSError` where there are no locks."""
    deadline = time.monotonic() + TURN_S
    while time.monotonic() < deadline:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(_POLL_S)


class BuiltSource:
    """Builds the whole model for the first read after each `close`; `reason` says why it has to.

    Args:
        build: makes the model with its first weights, the same each time.
        blank: the model without memory, for names and shapes.
        reason: why the factory could not be recorded.
        turn: held from that first read until `close`.
    """

    def __init__(self, build: Callable[[], nn.Module], blank: nn.Module, reason: str, turn: Turn) -> None:
        self._build, self._blank, self.reason, self._turn = build, named_tensors(blank), reason, turn
        self._live: LiveSource | None = None

    def names(self) -> Sequence[str]:
        """See `WeightSource`."""
        return tuple(self._blank)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `WeightSource`."""
        return tuple(self._known(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """See `WeightSource`."""
        return self._known(name).dtype

    def read(self, name: str, index: Index = ()) -> torch.Tensor:
        """See `WeightSource`; the first read builds the model."""
        self._known(name)
        if self._live is None:
            self._turn.take()
            self._live = LiveSource(self._build())
        return self._live.read(name, index)

    def close(self) -> None:
        """Drop the model, and let the next process build it."""
        self._live = None
        self._turn.give()

    def _known(self, name: str) -> torch.Tensor:
        if name not in self._blank:
            raise unknown(name)
        return self._blank[name]


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under every name they have, without the parts that wrappers add."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[clean(name)] = parameter
    for name, buffer in model.named_buffers(remove_duplicate=False):
        found[clean(name)] = buffer
    return found


def unknown(name: str) -> WeightsMismatch:
    """No such name."""
    return WeightsMismatch([f"{name} is not among them"], "Build the model as it was when the source was made")
