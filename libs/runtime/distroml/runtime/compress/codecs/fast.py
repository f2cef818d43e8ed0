"""Which kernels a codec works by: compiled ones on the CPU, on a GPU Triton's once they gave the definition's bits.

What Triton makes of a kernel depends on the GPU, the driver and its own version, and is known only there. So the first
use of a codec on a GPU, which compiles its kernels, also holds them to the definition on a small vector; where they
cannot be compiled or differ in a bit, the definition itself does the work from then on, after one warning.
"""

from __future__ import annotations

import functools
import logging
from typing import Protocol

import torch

from distroml.runtime.compress import gpu, native
from distroml.runtime.compress.codecs import oracle
from distroml.runtime.compress.codecs.noise import uniform
from distroml.runtime.compress.native.library import Kind

log = logging.getLogger(__name__)

# Several blocks of every codec and a part of one, of an odd number of elements.
_NUMEL, _CARRY, _SEED = 4999, 3.0, 2**63 + 7


class CodecKernels(Protocol):
    """What codecs need of kernels; `native.Kernels` says what each does."""

    def encode(
        self,
        kind: Kind,
        vector: torch.Tensor,
        residual: torch.Tensor | None,
        carry: float,
        seed: int,
        out: torch.Tensor,
        *,
        finite: bool = False,
    ) -> int:
        """Code one vector."""
        ...

    def add(self, kind: Kind, codes: torch.Tensor, total: torch.Tensor, *, fresh: bool = False) -> None:
        """Decode many."""
        ...

    def topk_select(
        self,
        vector: torch.Tensor,
        residual: torch.Tensor | None,
        carry: float,
        seed: int,
        out: torch.Tensor,
        indices: torch.Tensor,
        values: torch.Tensor,
    ) -> int:
        """Choose entries."""
        ...

    def topk_settle(
        self,
        vector: torch.Tensor,
        residual: torch.Tensor,
        carry: float,
        indices: torch.Tensor,
        values: torch.Tensor,
        decoded: torch.Tensor,
    ) -> None:
        """Keep the others."""
        ...

    def topk_add(self, code: torch.Tensor, values: torch.Tensor, total: torch.Tensor) -> bool:
        """Decode entries."""
        ...


class Accelerated(Protocol):
    """A codec that can work by kernels."""

    @property
    def name(self) -> str:
        """As a user writes it."""
        ...

    @property
    def oracle(self) -> oracle.Format:
        """What its kernels must agree with."""
        ...

    def encode_by(
        self,
        kernels: CodecKernels,
        vector: torch.Tensor,
        residual: torch.Tensor | None,
        carry: float,
        seed: int,
        out: torch.Tensor,
    ) -> None:
        """`Codec.encode`, by these kernels; its arguments are checked."""
        ...

    def add_by(self, kernels: CodecKernels, codes: torch.Tensor, total: torch.Tensor) -> None:
        """`Codec.add` of each row of `codes`, by these kernels; its arguments are checked."""
        ...


def kernels_for(codec: Accelerated, device: torch.device) -> CodecKernels | None:
    """The kernels that may do the work of `codec` for tensors on `device`; None: its definition does."""
    match device.type:
        case "cpu":
            return native.kernels()
        case "cuda":
            return _proved(codec, device)
        case _:
            return None


@functools.cache
def _proved(codec: Accelerated, device: torch.device) -> CodecKernels | None:
    kernels = gpu.kernels()
    return kernels if kernels is not None and usable(codec, kernels, device) else None


def usable(codec: Accelerated, kernels: CodecKernels, device: torch.device) -> bool:
    """Whether `kernels` do on `device` what defines `codec`; a warning says why not."""
    try:
        differ = [feedback for feedback in (True, False) if not _agree(codec, kernels, device, feedback)]
    except Exception as error:  # a compiler's own, a driver's, or that of a missing C compiler: whatever it is
        reason = f"its kernels do not work on {device}: {type(error).__name__}: {str(error).strip()[-300:]}"
    else:
        if not differ:
            return True
        reason = f"its kernels give other bits on {device} than they should"
    log.warning(
        "gradient compression by %s works by slower code: %s; install the version of Triton that this torch was built "
        "with, and a C compiler (Debian: apt install gcc)",
        codec.name,
        reason,
    )
    return False


def _agree(codec: Accelerated, kernels: CodecKernels, device: torch.device, feedback: bool) -> bool:
    cpu = torch.device("cpu")
    vector, residual, total = (uniform(_NUMEL, seed, cpu) - 0.5 for seed in (1, 2, 3))
    code = torch.empty(codec.oracle.size(_NUMEL), dtype=torch.uint8)
    there = [x.to(device, copy=True) for x in (vector, residual, total, code)]
    oracle.encode(codec.oracle, vector, residual if feedback else None, _CARRY, _SEED, code)
    codec.encode_by(kernels, there[0], there[1] if feedback else None, _CARRY, _SEED, there[3])
    for _ in range(2):
        total += codec.oracle.decode(code, _NUMEL)
    codec.add_by(kernels, there[3].expand(2, -1).contiguous(), there[2])
    expected = (vector, residual, total, code)
    return all(
        torch.equal(x.view(torch.uint8), y.cpu().view(torch.uint8)) for x, y in zip(expected, there, strict=True)
    )
