"""A book of conformance cases, and what all cases make their tensors with.

Numbers are small whole ones, so that sums are exact in every dtype and in every order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64)
SIZES = (0, 1, 7, 1021)

Case = Callable[[torch.device], None]


class Casebook:
    """Functions of one rank that raise where its group does otherwise than the runtime needs."""

    def __init__(self) -> None:
        self._cases: dict[str, Case] = {}
        # Where it is more than one.
        self._least: dict[str, int] = {}

    def case(self, function: Case) -> Case:
        self._cases[function.__name__] = function
        return function

    def of_at_least(self, ranks: int) -> Callable[[Case], Case]:
        def keep(function: Case) -> Case:
            self._least[function.__name__] = ranks
            return self.case(function)

        return keep

    def cases_of(self, ranks: int) -> dict[str, Case]:
        """Those that a group of so many ranks can be held to."""
        return {name: function for name, function in self._cases.items() if self._least.get(name, 1) <= ranks}


def of(rank: int, size: int = 7, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> torch.Tensor:
    """What `rank` hands in."""
    return ((torch.arange(size) % 5) + rank).to(dtype).to(device)


def total(size: int = 7, dtype: torch.dtype = torch.float32, ranks: Any = None, device: Any = "cpu") -> Any:
    given = (of(rank, size, torch.float64) for rank in (ranks or range(dist.get_world_size())))
    return sum(given, torch.zeros(size, dtype=torch.float64)).to(dtype).to(device)


def same(got: torch.Tensor, wanted: torch.Tensor, what: object = "") -> None:
    assert got.dtype == wanted.dtype, (got.dtype, wanted.dtype, what)
    assert torch.equal(got, wanted), f"{got} instead of {wanted} {what}".rstrip()
