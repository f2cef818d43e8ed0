"""What turns a vector into fewer bytes and back: the part of a scheme that has a naive and a fast version."""

from __future__ import annotations

from typing import Protocol

import torch


class Codec(Protocol):
    """A code of fixed size for float32 vectors of one length. It holds settings only."""

    @property
    def name(self) -> str:
        """As a user writes it, such as "int8" or "topk:0.01"."""
        ...

    @property
    def unbiased(self) -> bool:
        """Whether the decoded vector is the true one in the mean, so that it may go without a residual."""
        ...

    def size(self, numel: int) -> int:
        """Bytes of the code of `numel` elements."""
        ...

    def encode(
        self,
        vector: torch.Tensor,
        residual: torch.Tensor | None,
        carry: float,
        seed: int,
        out: torch.Tensor,
        *,
        finite: bool = False,
    ) -> None:
        """Write the code of `v = vector + carry * residual` to `out`; `residual` becomes `(v - decoded) / carry`.

        Args:
            vector: float32 `[n]`, unchanged.
            residual: float32 `[n]`, changed in place; None: nothing is fed back.
            carry: above 0; raw gradients over normalised ones.
            seed: of the random numbers, any 64 bits; the same seed gives the same code.
            out: uint8 `[size(n)]`.
            finite: `vector` is known to have finite numbers only, so that nobody needs to look.
        """
        ...

    def add(self, code: torch.Tensor, total: torch.Tensor) -> None:
        """Add the decoded vector to `total`, float32 `[n]`; `code` is uint8 `[size(n)]`."""
        ...
