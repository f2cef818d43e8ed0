"""What a back end of communication is: how a world's default group is opened, cut and told about."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import ClassVar, Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store  # torch.distributed has it, but does not export it

from distroml.runtime.comm.backends.connections import Connections

# Whoever is told of the end of a connection knows it by then.
_TOLD_S = 2.0


class Seat(Protocol):
    """A process's place among the others."""

    @property
    def rank(self) -> int:
        """Among all."""
        ...

    @property
    def world_size(self) -> int:
        """How many there are."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        ...


class BackEnd(ABC):
    """Carries the collectives of one world. One object is for one world; torch itself makes the sub-groups.

    Every back end behaves alike in what the runtime uses of it: `libs/runtime/tests/comm` holds them to that.
    """

    name: ClassVar[str]
    """As users write it."""
    torch_name: ClassVar[str]
    """As `torch.distributed` knows it."""
    reforms: ClassVar[bool]
    """Whether ranks that are left over may open another world in the same processes."""

    @abstractmethod
    def check(self, seat: Seat) -> None:
        """Raise `BackEndUnavailable` where the back end cannot serve this process."""

    @abstractmethod
    def open(self, seat: Seat, store: Store | None, timeout: timedelta) -> None:
        """Make the default process group; returns once every rank is known to be there.

        Args:
            seat: this process's place.
            store: where ranks find one another; None where nobody named one.
            timeout: for all of it.

        Raises:
            ValueError: the back end needs a store, and there is none.
            RuntimeError and torch's communication errors: a rank did not come in time, or left.
        """

    @abstractmethod
    def sever(self) -> None:
        """Free every thread of this process that waits in a group of this world; from any thread, repeatable."""

    def failure(self) -> str:
        """Why what this world's collectives gave cannot be believed; "" where they raise themselves when they fail."""
        return ""

    def in_vain(self) -> str:
        """Why nothing comes any more of what this world's collectives still wait for; "" where something may."""
        return ""

    def settle(self) -> None:
        """The world's groups were destroyed; return once their threads no longer need this process to be whole."""
        return

    def outlive(self) -> None:
        """The world's groups are destroyed next, though a thread of theirs may wait for a peer that is gone."""
        return

    @contextmanager
    def connecting(self) -> Generator[None]:
        """Within it, further groups of this world may be made: `sever` cuts them, too."""
        yield


class _Current:
    """The back end of the world that this process is in: one at a time."""

    def __init__(self) -> None:
        self.backend: BackEnd | None = None


_current = _Current()


def now_in(backend: BackEnd | None) -> None:
    """This process enters the world of `backend`; None: it is alone, or in none."""
    _current.backend = backend


def lost() -> str:
    """Why sums that this process waited for on its device may be none; "" where they can be believed.

    To be asked after each wait for a GPU, before what came of it is used.
    """
    backend = _current.backend
    return backend.failure() if backend is not None else ""


def in_vain() -> str:
    """Why waits of the world that this process is in are to be given up; "" where they may end by themselves."""
    backend = _current.backend
    return backend.in_vain() if backend is not None else ""


class SocketBackEnd(BackEnd):
    """A back end of torch's own, whose groups end with their sockets."""

    reforms = True

    def __init__(self) -> None:
        # From here on: the store's socket ends with the others.
        self._connections = Connections()
        self._cut_s: float | None = None

    def open(self, seat: Seat, store: Store | None, timeout: timedelta) -> None:
        """As in `BackEnd`."""
        if store is None:
            raise ValueError(
                f"WORLD_SIZE is {seat.world_size} but MASTER_ADDR and MASTER_PORT are not set; start the script with "
                "`distroml run` or torchrun, or with mpirun and the back end mpi"
            )
        dist.init_process_group(
            self.torch_name, store=store, rank=seat.rank, world_size=seat.world_size, timeout=timeout
        )
        # Creating a group ends before the others are known to be there; the first collective is the proof.
        dist.barrier(device_ids=[seat.device.index] if seat.device.type == "cuda" else None)
        self._connections.complete()

    def sever(self) -> None:
        """As in `BackEnd`."""
        if self._cut_s is None:
            self._cut_s = time.monotonic()
        self._connections.sever()

    def in_vain(self) -> str:
        """As in `BackEnd`."""
        if self._cut_s is None or time.monotonic() - self._cut_s < _TOLD_S:
            return ""
        return "the connections of this generation were cut, and what they were in the middle of never ends"

    @contextmanager
    def connecting(self) -> Generator[None]:
        """As in `BackEnd`."""
        self._connections.extend()
        try:
            yield
        finally:
            self._connections.complete()
