"""float16 as a codec: a vector of any magnitude, rounded to nearest, without overflow.

It belongs to a scheme with feedback: what is below 2^-39 of the largest element becomes zero at every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distroml.runtime.compress.codecs import NonFinite
from distroml.runtime.compress.codecs.checks import check_add, check_encode
from distroml.runtime.compress.codecs.oracle import LIMIT

_SCALE_BYTES = 4
# Of float16's range, with one bit left: 2^15 < 65504.
_TOP_EXPONENT = 15
# Scales stay normal float32 numbers.
_LEAST_EXPONENT = -100


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
        self,
        vector: torch.Tensor,
        residual: torch.Tensor | None,
        carry: float,
        seed: int,
        out: torch.Tensor,
        *,
        finite: bool = False,
    ) -> None:
        """See `Codec`; `out` begins at a multiple of 4 bytes. Raises `CodecError` and `NonFinite`."""
        check_encode(vector, residual, carry, out, self.size(vector.numel()))
        if not finite and not vector.isfinite().all():
            raise NonFinite(int((~vector.isfinite()).nonzero()[0]))
        true = vector if residual is None else torch.add(vector, residual, alpha=carry).clamp_(-LIMIT, LIMIT)
        exponent = torch.frexp(true.abs().max())[1].clamp(min=_LEAST_EXPONENT)
        scale = torch.ldexp(true.new_ones(()), exponent - _TOP_EXPONENT)
        out[:_SCALE_BYTES].view(torch.float32).copy_(scale)
        halves = out[_SCALE_BYTES:].view(torch.float16).copy_(true / scale)
        if residual is not None:
            torch.addcmul(true, halves.to(torch.float32), scale, value=-1.0, out=residual).div_(carry)

    def add(self, code: torch.Tensor, total: torch.Tensor) -> None:
        """See `Codec`."""
        check_add(code, total, self.size(total.numel()))
        scale = code[:_SCALE_BYTES].view(torch.float32)
        total.addcmul_(code[_SCALE_BYTES:].view(torch.float16).to(torch.float32), scale)
