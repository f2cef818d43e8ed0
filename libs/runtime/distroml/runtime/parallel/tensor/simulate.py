"""The ranks of a tp axis as threads of one process, so that a plan is proved where no process group can be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from distroml.runtime.parallel.tensor.sums import own_part

Result = TypeVar("Result")


@dataclass(slots=True)
class _Shared:
    barrier: threading.Barrier
    slots: list[torch.Tensor | None]
    errors: list[BaseException] = field(default_factory=list[BaseException])


@dataclass(frozen=True, slots=True)
class ThreadRanks:
    """The ranks as one thread sees them."""

    shared: _Shared
    rank: int
    degree: int

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum in the order of ranks; waits for all of them.

        Raises:
            threading.BrokenBarrierError: another rank failed.
            ValueError: another rank hands over a tensor of another shape, or has ended.
        """
        return torch.stack(self._alike(tensor)).sum(0)

    def gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """All ranks' tensors along `dim`; waits and raises as `sum` does."""
        return torch.cat(self._alike(tensor), dim)

    def scatter(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part of the sum; waits and raises as `sum` does."""
        return own_part(self.sum(tensor), dim, self)

    def end(self) -> None:
        """Wait for all ranks to end. Raises as `sum` does where one of them still wants something of the others."""
        if any(part is not None for part in self._exchange(None)):
            raise ValueError("ranks exchange different numbers of tensors")

    def _alike(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        parts = self._exchange(tensor.detach())
        shapes = [None if part is None else tuple(part.shape) for part in parts]
        if any(shape != tuple(tensor.shape) for shape in shapes):
            raise ValueError(f"ranks exchange tensors of the shapes {shapes}")
        return [part for part in parts if part is not None]

    def _exchange(self, part: torch.Tensor | None) -> list[torch.Tensor | None]:
        self.shared.slots[self.rank] = part
        self.shared.barrier.wait()
        parts = list(self.shared.slots)
        self.shared.barrier.wait()
        return parts


@dataclass(frozen=True, slots=True)
class LoneRank:
    """Rank 0 of `degree` without the others: sums are its own part, shapes are right."""

    degree: int
    rank: int = 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy."""
        return tensor.detach().clone()

    def gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Its own part in every rank's place."""
        return torch.cat([tensor.detach()] * self.degree, dim)

    def scatter(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """Its own part of what it has."""
        return own_part(tensor.detach(), dim, self).clone()


def run_ranks(degree: int, work: Callable[[ThreadRanks], Result]) -> list[Result]:
    """What `work` returns on each rank; raises the first rank's error that is not another one's echo."""
    shared = _Shared(threading.Barrier(degree), [None] * degree)
    results: dict[int, Result] = {}

    def run(rank: int) -> None:
        try:
            ranks = ThreadRanks(shared, rank, degree)
            results[rank] = work(ranks)
            ranks.end()
        except Exception as error:
            shared.errors.append(error)
            shared.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,), name=f"tp-{rank}") for rank in range(degree)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = [error for error in shared.errors if not isinstance(error, threading.BrokenBarrierError)]
    if own:
        raise own[0]
    return [results[rank] for rank in range(degree)]
