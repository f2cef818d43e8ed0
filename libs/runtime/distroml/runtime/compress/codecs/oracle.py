"""What each code is, bit for bit, in plain torch: the definition that fast kernels are tested against.

It also is the path where there are no kernels. A format turns `v` into bytes and back; what is common to all of them,
the residual, is in `encode`. All arithmetic is float32, each operation rounded by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from distroml.runtime.compress.codecs.errors import DamagedCode, NonFinite
from distroml.runtime.compress.codecs.noise import fold, uniform

# A sum beyond this is held at it, so that no scale or decoded value of finite gradients, and with a carry of 1 or more
# no residual, is ever infinite.
LIMIT = 2.0**127
CHUNK = 65536  # elements that an offset of 16 bits tells apart
_LANES = 16


class Format(Protocol):
    """A code without its residual."""

    def size(self, numel: int) -> int:
        """Bytes of the code of `numel` elements."""
        ...

    def code(self, v: torch.Tensor, seed: int) -> torch.Tensor:
        """The code of float32 `[n]`, uint8 `[size(n)]`."""
        ...

    def decode(self, code: torch.Tensor, numel: int) -> torch.Tensor:
        """The vector that receivers see, float32 `[numel]`."""
        ...


def encode(
    format_: Format, vector: torch.Tensor, residual: torch.Tensor | None, carry: float, seed: int, out: torch.Tensor
) -> None:
    """`Codec.encode` of any format; error feedback as in 1-bit SGD (Seide et al., 2014). Raises `NonFinite`."""
    finite = vector.isfinite()
    if not finite.all():
        raise NonFinite(int((~finite).nonzero()[0]))
    scale = torch.tensor(carry, dtype=torch.float32, device=vector.device)
    v = (vector if residual is None else vector + scale * residual).clamp(-LIMIT, LIMIT)
    out.copy_(format_.code(v, seed))
    if residual is not None:
        residual.copy_((v - format_.decode(out, v.numel())) / scale)


def to_bytes(x: torch.Tensor) -> torch.Tensor:
    """The memory of `x`, uint8, 1-D."""
    return x.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def from_bytes(code: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The other way round, wherever `code` begins in its storage."""
    return code.clone().view(dtype)


def _blocks(v: torch.Tensor, block: int) -> torch.Tensor:
    return torch.nn.functional.pad(v, (0, -v.numel() % block)).view(-1, block)


@dataclass(frozen=True, slots=True)
class Quantised:
    """QSGD (Alistarh et al., 2017): floor(v / scale + u), scale being the block's largest magnitude over `top`.

    Scales first, float32; then codes, one int8 each, or with `nibbles` code + 8 in four bits, the even element's low.
    """

    block: int
    top: int
    nibbles: bool

    def size(self, numel: int) -> int:
        """Bytes of the code of `numel` elements."""
        return 4 * -(-numel // self.block) + (-(-numel // 2) if self.nibbles else numel)

    def code(self, v: torch.Tensor, seed: int) -> torch.Tensor:
        """The code of `v`."""
        blocks = _blocks(v, self.block)
        scales = blocks.abs().amax(1, keepdim=True) / torch.tensor(float(self.top), device=v.device)
        u = uniform(blocks.numel(), fold(seed), v.device).view_as(blocks)
        codes = (blocks / scales + u).floor().clamp(-self.top, self.top)
        codes = torch.where(scales == 0, 0.0, codes).to(torch.int8).view(-1)[: v.numel()]
        if self.nibbles:
            pairs = (_blocks(codes, 2) + 8).to(torch.uint8)
            return torch.cat([to_bytes(scales), pairs[:, 0] | pairs[:, 1] << 4])
        return torch.cat([to_bytes(scales), to_bytes(codes)])

    def decode(self, code: torch.Tensor, numel: int) -> torch.Tensor:
        """The vector that receivers see."""
        scales = from_bytes(code[: 4 * -(-numel // self.block)], torch.float32)
        packed = code[4 * scales.numel() :]
        if self.nibbles:
            codes = torch.stack([packed & 15, packed >> 4], 1).view(-1)[:numel].to(torch.float32) - 8
        else:
            codes = packed.clone().view(torch.int8).to(torch.float32)
        return (_blocks(codes, self.block) * scales[:, None]).view(-1)[:numel]


@dataclass(frozen=True, slots=True)
class Signs:
    """1-bit SGD (Seide et al., 2014) with the mean magnitude of a block as in EF-SignSGD (Karimireddy et al., 2019).

    The mean is summed in float64: 16 lanes of stride 16 by rows, then folded in halves, so that it is the same number
    everywhere. Scales first, float32; then bit i % 8 of byte i / 8, set where v >= 0.
    """

    block: int

    def size(self, numel: int) -> int:
        """Bytes of the code of `numel` elements."""
        return 4 * -(-numel // self.block) + -(-numel // 8)

    def code(self, v: torch.Tensor, seed: int) -> torch.Tensor:
        """The code of `v`; it needs no random numbers."""
        rows = _blocks(v, self.block).view(-1, self.block // _LANES, _LANES).abs().to(torch.float64)
        lanes = torch.zeros_like(rows[:, 0])
        for row in rows.unbind(1):
            lanes += row
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        counts = torch.full_like(lanes, self.block)
        counts[-1] = v.numel() - self.block * (len(counts) - 1)
        bits = _blocks((v >= 0).to(torch.uint8), 8) << torch.arange(8, dtype=torch.uint8, device=v.device)
        return torch.cat([to_bytes((lanes / counts).to(torch.float32)), bits.sum(1, dtype=torch.uint8)])

    def decode(self, code: torch.Tensor, numel: int) -> torch.Tensor:
        """The vector that receivers see."""
        scales = from_bytes(code[: 4 * -(-numel // self.block)], torch.float32)
        packed = code[4 * scales.numel() :, None]
        bits = (packed >> torch.arange(8, dtype=torch.uint8, device=code.device) & 1).view(-1)[:numel]
        signs = bits.to(torch.float32) * 2 - 1
        return (_blocks(signs, self.block) * scales[:, None]).view(-1)[:numel]


@dataclass(frozen=True, slots=True)
class Cast:
    """Each element rounded to the nearest of a narrower type, or as it is."""

    dtype: torch.dtype

    def size(self, numel: int) -> int:
        """Bytes of the code of `numel` elements."""
        return numel * self.dtype.itemsize

    def code(self, v: torch.Tensor, seed: int) -> torch.Tensor:
        """The code of `v`; it needs no random numbers."""
        return to_bytes(v.to(self.dtype))

    def decode(self, code: torch.Tensor, numel: int) -> torch.Tensor:
        """The vector that receivers see."""
        return from_bytes(code, self.dtype).to(torch.float32)


@dataclass(frozen=True, slots=True)
class Greatest:
    """The `kept(n)` greatest magnitudes by index, of equal ones the first (DGC, Lin et al., 2018).

    How many there are in each 65,536 elements, uint32; their offsets therein, uint16; their values as `values` codes.
    """

    kept: Callable[[int], int]
    values: Format

    def size(self, numel: int) -> int:
        """Bytes of the code of `numel` elements."""
        k = self.kept(numel)
        return 4 * -(-numel // CHUNK) + 2 * k + self.values.size(k)

    def code(self, v: torch.Tensor, seed: int) -> torch.Tensor:
        """The code of `v`; only its values may need random numbers."""
        order = v.abs().sort(descending=True, stable=True).indices
        indices = order[: self.kept(v.numel())].sort().values
        counts = (indices // CHUNK).bincount(minlength=-(-v.numel() // CHUNK)).to(torch.int32)
        offsets = (indices % CHUNK).to(torch.int32).view(torch.int16)[::2]  # the low halves
        return torch.cat([to_bytes(counts), to_bytes(offsets), self.values.code(v[indices], seed)])

    def decode(self, code: torch.Tensor, numel: int) -> torch.Tensor:
        """The vector that receivers see; raises `DamagedCode`."""
        chunks, k = -(-numel // CHUNK), self.kept(numel)
        counts = from_bytes(code[: 4 * chunks], torch.int32).to(torch.int64)
        if int(counts.min()) < 0 or int(counts.sum()) != k:
            raise DamagedCode(f"a Top-K code of {numel} elements should have {k} entries, not {int(counts.sum())}")
        offsets = from_bytes(code[4 * chunks : 4 * chunks + 2 * k], torch.int16).to(torch.int64) & (CHUNK - 1)
        indices = torch.arange(chunks, device=code.device).repeat_interleave(counts) * CHUNK + offsets
        if int(indices.max()) >= numel:
            raise DamagedCode(f"a Top-K code of {numel} elements has an entry at {int(indices.max())}")
        decoded = torch.zeros(numel, device=code.device)
        decoded[indices] = self.values.decode(code[4 * chunks + 2 * k :], k)
        return decoded
