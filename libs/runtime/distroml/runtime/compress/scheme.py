"""What a compression scheme is: rounds of payloads to exchange, and what it keeps between steps.

A scheme talks to no network. It is a generator that yields what this rank sends, is sent back what it got, and ends
when the buffer holds the sum over all ranks. The same generators run over real process groups, and all ranks at once
in one process, where tests compare them with the plain sum.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from distroml.runtime.compress.layout import Layout

How = Literal["sum", "gather", "scatter"]


class TakenBack(Exception):
    """Thrown into a scheme that waits for an answer: the exchange was for nothing on any rank."""


@dataclass(frozen=True, slots=True)
class Round:
    """One exchange. `payload` is 1-D and contiguous, of the same size and type on every rank.

    Where there is a `fill`, that writes `payload`, and is to be called once: others' payloads may be on their way here
    meanwhile.

    - "sum": comes back as its element-wise sum over the ranks, 1-D, the same bits on every rank.
    - "gather": comes back as `[world_size, n]`, every rank's payload by rank; it may be `into`, `[world_size, n]`, of
      which `payload` then is this rank's row, so that it need not be copied.
    - "scatter": `payload` is `world_size` equal parts, one for each rank; comes back as `[world_size, n / world_size]`,
      the parts that are for this rank, by sender.
    """

    how: How
    payload: torch.Tensor
    into: torch.Tensor | None = None
    fill: Callable[[], None] | None = None

    def filled(self) -> torch.Tensor:
        """The payload, once it is written."""
        if self.fill is not None:
            self.fill()
        return self.payload


@dataclass(frozen=True, slots=True)
class Turn:
    """Where and when an exchange happens.

    Attributes:
        rank: of this process along the axis whose ranks exchange.
        world_size: number of those ranks.
        step: of training, from 1.
        bucket: number of the buffer in the plan's layout.
        seed: of the job.
        unit: raw gradients over normalised ones: the global count of loss terms of this step. Buffers hold raw
            gradients; residuals are kept normalised, so that they mean the same at another batch or world size.
        finite: this rank's buffer is known to have finite numbers only.
        tail: bytes, a multiple of 8, for which the one round of a scheme that `takes_back` has room behind its own.
    """

    rank: int
    world_size: int
    step: int
    bucket: int
    seed: int
    unit: float
    finite: bool = False
    tail: int = 0


@dataclass(slots=True)
class State:
    """What a scheme keeps of one buffer between steps; buffers are owned by the caller and changed in place.

    Attributes:
        residual: float32 `[numel]`, normalised: what this rank's gradients lost so far; None where nothing is fed back.
        owned: float32, normalised: what this rank lost of sums that it forms for the others in the second phase.
        owned_from: first element of the buffer that `owned` is of.
        extra: what else continues, by name; equal on every rank, and rebuilt from nothing where it is missing.
    """

    residual: torch.Tensor | None = None
    owned: torch.Tensor | None = None
    owned_from: int = 0
    extra: dict[str, torch.Tensor] = field(default_factory=lambda: dict[str, torch.Tensor]())


class Scheme(Protocol):
    """One way to sum a buffer over ranks with fewer bytes. It holds settings only; state is explicit."""

    @property
    def name(self) -> str:
        """As a user writes it, such as "int8" or "powersgd:4"; `parse_scheme(name)` gives an equal scheme."""
        ...

    def prepare(self, layout: Layout, world_size: int, device: torch.device) -> State:
        """The state before the first step."""
        ...

    def rounds(self, flat: torch.Tensor, layout: Layout, state: State, turn: Turn) -> Generator[Round, torch.Tensor]:
        """Exchange `flat`, float32 `[layout.numel]`, this rank's raw gradients; at the end it holds their sum.

        The sum is the same to the bit on every rank. What this rank's share of it lacks is in `state.residual` then:
        over all ranks, sum + (residuals + owned) * unit == the true sum of gradients and of what was kept before.
        """
        ...

    def takes_back(self, layout: Layout, world_size: int) -> bool:
        """Whether `TakenBack`, thrown in place of its only round's answer, undoes what it did, and is raised again.

        Residuals are what they were then but for rounding of sums with these gradients, of 1e-7 of a gradient; where
        the round's `fill` was not called nothing was done. The round is a "gather" of bytes, of which the last
        `Turn.tail` are not the scheme's.
        """
        ...

    def sent_bytes(self, layout: Layout, world_size: int) -> int:
        """Bytes that one rank sends in one exchange: scales, indices and all phases counted, headers of TCP not."""
        ...
