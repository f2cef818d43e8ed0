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
            ValueError: ranks handed over tensors of different shapes.
        """
        self.shared.slots[self.rank] = tensor.detach()
        self.shared.barrier.wait()
        parts = [part for part in self.shared.slots if part is not None]
        if any(part.shape != tensor.shape for part in parts):
            raise ValueError(f"ranks sum tensors of shapes {[tuple(part.shape) for part in parts]}")
        total = torch.stack(parts).sum(0)
        self.shared.barrier.wait()
        return total


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
            results[rank] = work(ThreadRanks(shared, rank, degree))
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
