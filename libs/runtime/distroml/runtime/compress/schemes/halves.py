"""Codecs of plain number formats: float32 loses nothing, bfloat16 and float16 round to nearest.

Both halves belong to a scheme with feedback: rounding to nearest drops what is small beside its neighbours in the same
way at every step, and float16 drops whatever is below 2^-39 of the largest element. `out` begins at a multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_SCALE_BYTES = 4
# Of float16's range, with one bit left: 2^15 < 65504.
_TOP_EXPONENT = 15
# Scales stay normal float32 numbers.
_LEAST_EXPONENT = -100


def _true(vector: torch.Tensor, residual: torch.Tensor | None, carry: float) -> torch.Tensor:
    return vector if residual is None else torch.add(vector, residual, alpha=carry)


@dataclass(frozen=True, slots=True)
class Float32:
    """The vector itself."""

    @property
    def name(self) -> str:
        """See `Codec`."""
        return "float32"

    @property
    def unbiased(self) -> bool:
        """See `Codec`."""
        return True

    def size(self, numel: int) -> int:
        """See `Codec`."""
        return 4 * numel

    def encode(
        self, vector: torch.Tensor, residual: torch.Tensor | None, carry: float, seed: int, out: torch.Tensor
    ) -> None:
        """See `Codec`."""
        out.view(torch.float32).copy_(_true(vector, residual, carry))
        if residual is not None:
            residual.zero_()

    def add(self, code: torch.Tensor, total: torch.Tensor) -> None:
        """See `Codec`."""
        total.add_(code.view(torch.float32))


@dataclass(frozen=True, slots=True)
class BFloat16:
    """The upper half of a float32."""

    @property
    def name(self) -> str:
        """See `Codec`."""
        return "bf16"

    @property
    def unbiased(self) -> bool:
        """See `Codec`."""
        return False

    def size(self, numel: int) -> int:
        """See `Codec`."""
        return 2 * numel

    def encode(
        self, vector: torch.Tensor, residual: torch.Tensor | None, carry: float, seed: int, out: torch.Tensor
    ) -> None:
        """See `Codec`."""
        true = _true(vector, residual, carry)
        halves = out.view(torch.bfloat16).copy_(true)
        if residual is not None:
            torch.sub(true, halves, out=residual).div_(carry)

    def add(self, code: torch.Tensor, total: torch.Tensor) -> None:
        """See `Codec`."""
        total.add_(code.view(torch.bfloat16))


@dataclass(frozen=True, slots=True)
class Float16:
    """A float16 of each element over a power of two, a float32 in front: no vector overflows."""

    @property
    def name(self) -> str:
        """See `Codec`."""
        return "fp16"

    @property
    def unbiased(self) -> bool:
        """See `Codec`."""
        return False

    def size(self, numel: int) -> int:
        """See `Codec`."""
        return _SCALE_BYTES + 2 * numel

    def encode(
        self, vector: torch.Tensor, residual: torch.Tensor | None, carry: float, seed: int, out: torch.Tensor
    ) -> None:
        """See `Codec`."""
        true = _true(vector, residual, carry)
        exponent = torch.frexp(true.abs().max())[1].clamp(min=_LEAST_EXPONENT)
        scale = torch.ldexp(true.new_ones(()), exponent - _TOP_EXPONENT)
        out[:_SCALE_BYTES].view(torch.float32).copy_(scale)
        halves = out[_SCALE_BYTES:].view(torch.float16).copy_(true / scale)
        if residual is not None:
            torch.addcmul(true, halves.to(torch.float32), scale, value=-1.0, out=residual).div_(carry)

    def add(self, code: torch.Tensor, total: torch.Tensor) -> None:
        """See `Codec`."""
        scale = code[:_SCALE_BYTES].view(torch.float32)
        total.addcmul_(code[_SCALE_BYTES:].view(torch.float16).to(torch.float32), scale)
