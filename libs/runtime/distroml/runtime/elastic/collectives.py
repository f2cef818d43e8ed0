"""The collectives the runtime uses, with every failure of a peer turned into `PeerLost`."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from distroml.runtime.comm.backends import Work, lost, watched
from distroml.runtime.elastic.errors import PeerLost, is_communication_error
from distroml.runtime.elastic.world import World
from distroml.runtime.typed import floats

T = TypeVar("T")


@contextmanager
def communication() -> Generator[None]:
    """Within it, an error of communication becomes `PeerLost`; any other passes unchanged."""
    try:
        yield
    except PeerLost:
        raise
    except Exception as error:
        if not is_communication_error(error):
            raise
        raise PeerLost(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__) from None


def check_sums() -> None:
    """Raise `PeerLost` where sums that this process just waited for on its GPU may be none; see `lost`."""
    if why := lost():
        raise PeerLost(why)


def heard(summed: torch.Tensor) -> list[float]:
    """The elements of a one-dimensional sum, once they are here. Raises `PeerLost` where they may be none."""
    values = floats(summed)
    check_sums()
    return values


@contextmanager
def hearing() -> Generator[None]:
    """As `communication`, around what other ranks give and this process reads: raises `PeerLost` where that is nothing.

    Whatever else was raised says nothing then, either: what a broken group left may be no number and no pickle.
    """
    with communication():
        try:
            yield
        except Exception:
            check_sums()
            raise
        check_sums()


class Pending:
    """A collective that is under way; `wait()` raises `PeerLost` where it failed."""

    def __init__(self, work: Work | None) -> None:
        self._work = work

    def wait(self) -> None:
        """Return when the result is there (on CUDA: when the current stream will see it)."""
        work, self._work = self._work, None
        if work is not None:
            with communication():
                work.wait()


class Collectives:
    """Sums and agreements over the ranks of one world; with one rank each is the identity."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._alone = world.world_size == 1

    def sum_async(self, tensor: torch.Tensor) -> Pending:
        """Begin to replace `tensor` by its sum over all ranks, bit-equal on all of them."""
        if self._alone:
            return Pending(None)
        with communication():
            return Pending(watched(cast("dist.Work | None", dist.all_reduce(tensor, async_op=True))))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, replaced by its sum over all ranks."""
        self.sum_async(tensor).wait()
        return tensor

    def broadcast(self, tensors: list[torch.Tensor], source: int = 0) -> None:
        """Replace every rank's tensors by those of `source`."""
        if self._alone:
            return
        with communication():
            pending = [watched(dist.broadcast(t, source, async_op=True)) for t in tensors]
            for work in pending:
                if work is not None:
                    work.wait()

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, by rank. Small Python values only: they are pickled between ranks of one generation."""
        if self._alone:
            return [value]
        gathered: list[T | None] = [None] * self.world.world_size
        with hearing():
            dist.all_gather_object(gathered, value)
        return cast("list[T]", gathered)
