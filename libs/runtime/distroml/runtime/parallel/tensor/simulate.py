"""The ranks of a tp axis as threads of one process, so that a plan is proved where no process group can be."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

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
            ValueError: another rank sums a tensor of another shape, or has ended.
        """
        parts = self._exchange(tensor.detach())
        shapes = [None if part is None else tuple(part.shape) for part in parts]
        if any(shape != tuple(tensor.shape) for shape in shapes):
            raise ValueError(f"ranks sum tensors of the shapes {shapes}")
        return torch.stack([part for part in parts if part is not None]).sum(0)

    def end(self) -> None:
        """Wait for all ranks to end. Raises as `sum` does where one of them still wants to sum."""
        if any(part is not None for part in self._exchange(None)):
            raise ValueError("ranks sum different numbers of tensors")

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
