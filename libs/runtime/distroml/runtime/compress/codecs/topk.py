"""Top-K: the greatest entries, exactly, with packed indices and values that may travel in fewer bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distroml.planner.compression import share_of
from distroml.runtime.compress.codecs import oracle
from distroml.runtime.compress.codecs.blocks import FLOAT32, BlockCodec, CastCodec
from distroml.runtime.compress.codecs.checks import check_add, check_encode
from distroml.runtime.compress.codecs.errors import CodecError, DamagedCode, NonFinite
from distroml.runtime.compress.codecs.fast import CodecKernels, kernels_for
from distroml.runtime.compress.codecs.noise import fold

_MOST = 2**32 - 1


@dataclass(frozen=True, slots=True)
class TopK:
    """The `kept(n)` greatest magnitudes of v, of equal ones the first. Raises `CodecError` and `NonFinite`.

    The C++ kernel estimates a threshold from a sample as Deep Gradient Compression (Lin et al., 2018) does, but only to
    see most elements once: of those above it, it selects exactly, and where they are too few it looks again.

    Attributes:
        ratio: kept entries over all, above 0 and at most 1.
        values: what values travel as: FLOAT32, BF16 or INT8.
    """

    ratio: float
    values: BlockCodec | CastCodec = FLOAT32

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise CodecError(f"Top-K keeps a share of entries above 0 and at most 1, not {self.ratio}; try topk:0.01")

    @property
    def name(self) -> str:
        """As a user writes it."""
        return f"topk:{self.ratio!r}" + ("" if self.values == FLOAT32 else f"+{self.values.name}")

    @property
    def unbiased(self) -> bool:
        """Never: small entries wait in the residual."""
        return False

    @property
    def oracle(self) -> oracle.Format:
        """What defines the code."""
        return oracle.Greatest(self.kept, self.values.oracle)

    def kept(self, numel: int) -> int:
        """How many entries are kept: `ratio` of them as it is written in decimals, rounded up."""
        return share_of(self.ratio, numel)

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
        if vector.numel() > _MOST:
            raise CodecError(f"Top-K takes at most {_MOST} elements at once, not {vector.numel()}; use smaller buckets")
        kernels = kernels_for(_ANY, vector.device)
        if kernels is None:
            oracle.encode(self.oracle, vector, residual, carry, seed, out)
        else:
            self.encode_by(kernels, vector, residual, carry, seed, out)

    def encode_by(
        self,
        kernels: CodecKernels,
        vector: torch.Tensor,
        residual: torch.Tensor | None,
        carry: float,
        seed: int,
        out: torch.Tensor,
    ) -> None:
        """See `Accelerated.encode_by`."""
        k, device = self.kept(vector.numel()), vector.device
        indices, values = torch.empty(k, dtype=torch.int32, device=device), torch.empty(k, device=device)
        bad = kernels.topk_select(vector, residual, carry, fold(seed), out, indices, values)
        if bad >= 0:
            raise NonFinite(bad)
        coded = out[out.numel() - self.values.size(k) :]
        self.values.encode(values, None, 1.0, seed, coded)
        if residual is not None:
            kernels.topk_settle(vector, residual, carry, indices, values, self.values.oracle.decode(coded, k))

    def add(self, code: torch.Tensor, total: torch.Tensor) -> None:
        """See `Codec.add`; raises `DamagedCode`."""
        check_add(code, total, self.size(total.numel()))
        kernels = kernels_for(_ANY, total.device)
        if kernels is None:
            total += self.oracle.decode(code, total.numel())
        else:
            self.add_by(kernels, code[None], total)

    def add_by(self, kernels: CodecKernels, codes: torch.Tensor, total: torch.Tensor) -> None:
        """See `Accelerated.add_by`."""
        k = self.kept(total.numel())
        for code in codes:
            values = self.values.oracle.decode(code[code.numel() - self.values.size(k) :], k)
            if not kernels.topk_add(code, values, total):
                raise DamagedCode(f"no Top-K code of {k} entries among {total.numel()} elements has these indices")


_ANY = TopK(0.1)  # kernels that do for one ratio and float32 do for all, of which there may be many in a run
