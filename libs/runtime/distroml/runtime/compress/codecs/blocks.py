"""Codes by blocks: int8 and int4 with unbiased rounding, one bit with the block's mean magnitude; bf16 and float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distroml.runtime.compress.codecs import oracle
from distroml.runtime.compress.codecs.checks import check_add, check_encode
from distroml.runtime.compress.codecs.errors import NonFinite
from distroml.runtime.compress.codecs.fast import CodecKernels, kernels_for
from distroml.runtime.compress.codecs.noise import fold
from distroml.runtime.compress.native.library import Kind


@dataclass(frozen=True, slots=True)
class BlockCodec:
    """A `Codec` that kernels of `kind` know; `oracle` defines it. Raises `CodecError` and `NonFinite`."""

    kind: Kind
    oracle: oracle.Format
    unbiased: bool

    @property
    def name(self) -> str:
        """As a user writes it."""
        return self.kind

    def size(self, numel: int) -> int:
        """Bytes of the code of `numel` elements."""
        return self.oracle.size(numel)

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
        """See `Codec.encode`."""
        check_encode(vector, residual, carry, out, self.size(vector.numel()))
        kernels = kernels_for(self, vector.device)
        if kernels is None:
            oracle.encode(self.oracle, vector, residual, carry, seed, out)
        else:
            self.encode_by(kernels, vector, residual, carry, seed, out, finite=finite)

    def encode_by(
        self,
        kernels: CodecKernels,
        vector: torch.Tensor,
        residual: torch.Tensor | None,
        carry: float,
        seed: int,
        out: torch.Tensor,
        *,
        finite: bool = False,
    ) -> None:
        """See `Accelerated.encode_by`."""
        if (bad := kernels.encode(self.kind, vector, residual, carry, fold(seed), out, finite=finite)) >= 0:
            raise NonFinite(bad)

    def add(self, code: torch.Tensor, total: torch.Tensor) -> None:
        """See `Codec.add`."""
        check_add(code, total, self.size(total.numel()))
        self.add_all(code[None], total)

    def add_all(self, codes: torch.Tensor, total: torch.Tensor, *, fresh: bool = False) -> None:
        """`add` of each row of `codes`, uint8 `[count, size]`, in one pass over `total`; `fresh`: from zero."""
        kernels = kernels_for(self, total.device)
        if kernels is not None:
            kernels.add(self.kind, codes, total, fresh=fresh)
            return
        if fresh:
            total.zero_()
        for code in codes:
            total += self.oracle.decode(code, total.numel())

    def add_by(self, kernels: CodecKernels, codes: torch.Tensor, total: torch.Tensor) -> None:
        """See `Accelerated.add_by`."""
        kernels.add(self.kind, codes, total)


@dataclass(frozen=True, slots=True)
class CastCodec:
    """A `Codec` of plain values, for payloads of others. Raises `CodecError` and `NonFinite`."""

    name: str
    oracle: oracle.Format
    unbiased: bool

    def size(self, numel: int) -> int:
        """Bytes of the code of `numel` elements."""
        return self.oracle.size(numel)

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
        """See `Codec.encode`."""
        check_encode(vector, residual, carry, out, self.size(vector.numel()))
        oracle.encode(self.oracle, vector, residual, carry, seed, out)

    def add(self, code: torch.Tensor, total: torch.Tensor) -> None:
        """See `Codec.add`."""
        check_add(code, total, self.size(total.numel()))
        total += self.oracle.decode(code, total.numel())


INT8 = BlockCodec("int8", oracle.Quantised(block=256, top=127, nibbles=False), unbiased=True)
INT4 = BlockCodec("int4", oracle.Quantised(block=128, top=7, nibbles=True), unbiased=True)
SIGN = BlockCodec("sign", oracle.Signs(block=1024), unbiased=False)
FLOAT32 = CastCodec("none", oracle.Cast(torch.float32), unbiased=True)
BF16 = BlockCodec("bf16", oracle.Cast(torch.bfloat16), unbiased=False)
