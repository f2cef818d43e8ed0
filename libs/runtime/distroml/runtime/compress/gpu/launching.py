"""Triton's kernels with the interface of the compiled ones (`native/library.py`), for tensors of a GPU.

Importing this imports Triton. Callers promise what `Codec` asks for: contiguous, of one device, of the types and sizes
that are said. Work is queued on the current stream; encoders wait for it, to learn whether the vector was finite.
"""

from __future__ import annotations

from typing import Protocol

import torch

from distroml.runtime.compress.gpu import device
from distroml.runtime.compress.native.library import Kind

_TILE = 1024
_CHUNK = 65536  # elements that Top-K's offsets of 16 bits tell apart; whole tiles
# Elements of a block, and blocks of a program: enough for a few warps to have something each.
_QUANTISED = {"int8": (256, 127, 8), "int4": (128, 7, 16)}
_SIGN, _SIGN_BLOCKS, _SIGN_PART = 1024, 8, 128


class Launch(Protocol):
    """Runs as many programs of a kernel; `known` are its arguments that the compiler knows."""

    def __call__(self, kernel: device.Kernel, programs: int, *arguments: object, **known: object) -> None:
        """Queue them."""
        ...


def on_gpu(kernel: device.Kernel, programs: int, *arguments: object, **known: object) -> None:
    """Where the first argument, a tensor, lies. Fused multiply-add would round differently than the definition."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(programs,)](*arguments, **known, enable_fp_fusion=False)


def _over(count: int, size: int) -> int:
    return -(-count // size)


def _signed(seed: int) -> int:
    """A kernel is compiled for the type of its integers, and this way a seed has one."""
    return seed - 2**32 if seed >= 2**31 else seed


class Kernels:
    """What `native.Kernels` offers to codecs, bit for bit. Compiled by Triton at first use: its errors come through."""

    def __init__(self, launch: Launch = on_gpu) -> None:
        self._launch = launch

    def first_nonfinite(self, x: torch.Tensor) -> int:
        """Index of the first NaN or infinity of float32 `x`, or -1."""
        return _index(self._look(x), x.numel())

    def _look(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.full((), x.numel(), dtype=torch.int64, device=x.device)
        self._launch(device.first_nonfinite, _over(x.numel(), 4 * _TILE), x, first, x.numel(), TILE=4 * _TILE)
        return first

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
        """`Codec.encode` with a seed of 32 bits; returns -1, or where `vector` is not finite, nothing being changed.

        The kernel itself looks at what the search for NaNs found, so that the GPU waits for nobody between the two.
        """
        n = vector.numel()
        first = self._look(vector)
        match kind:
            case "int8" | "int4":
                size, top, blocks = _QUANTISED[kind]
                places = _places(out, n, size)
                self._launch(
                    device.encode_quantised, _over(n, size * blocks),
                    first, vector, residual, carry, _signed(seed), *places, n,
                    TOP=top, NIBBLES=kind == "int4", SIZE=size, BLOCKS=blocks,
                )  # fmt: skip
            case "sign":
                places = _places(out, n, _SIGN)
                self._launch(
                    device.encode_sign, _over(n, _SIGN * _SIGN_BLOCKS),
                    first, vector, residual, carry, *places, n,
                    SIZE=_SIGN, BLOCKS=_SIGN_BLOCKS, PART=_SIGN_PART,
                )  # fmt: skip
            case "bf16":
                self._launch(
                    device.encode_bf16, _over(n, _TILE),
                    first, vector, residual, carry, out, 2 * n, n,
                    TILE=_TILE,
                )  # fmt: skip
        return _index(first, n)

    def add(self, kind: Kind, codes: torch.Tensor, total: torch.Tensor, *, fresh: bool = False) -> None:
        """Add the vectors of `codes`, uint8 `[count, size]`, to `total` in their order, in one pass over it.

        A `fresh` total is taken for zero, whatever it holds.
        """
        count, stride, n = len(codes), codes.stride(0), total.numel()
        if fresh:
            total.zero_()
        match kind:
            case "int8" | "int4":
                size, _, blocks = _QUANTISED[kind]
                self._launch(
                    device.add_quantised, _over(n, size * blocks),
                    *_places(codes[0], n, size), stride, count, total, n,
                    NIBBLES=kind == "int4", SIZE=size, BLOCKS=blocks,
                )  # fmt: skip
            case "sign":
                self._launch(
                    device.add_sign, _over(n, _SIGN), *_places(codes[0], n, _SIGN), stride, count, total, n,
                    SIZE=_SIGN, BLOCKS=1,
                )  # fmt: skip
            case "bf16":
                self._launch(device.add_bf16, _over(n, _TILE), codes, 2 * n, stride, count, total, n, TILE=_TILE)

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
        """Write counts and offsets of the greatest entries to `out`; also `indices` (int32), `values`. As `encode`.

        The threshold is exactly the k-th magnitude, by torch's radix selection, so that no sample is needed.
        """
        n, k = vector.numel(), values.numel()
        if (bad := self.first_nonfinite(vector)) >= 0:
            return bad
        tiles, chunks = _over(n, _TILE), _over(n, _CHUNK)
        keys = torch.empty(n, dtype=torch.int32, device=vector.device)
        self._launch(device.topk_keys, tiles, vector, residual, carry, keys, n, TILE=_TILE)
        threshold = torch.topk(keys, k, sorted=False).values.amin()
        greater, equal = found = torch.empty(2, tiles, dtype=torch.int64, device=vector.device)
        self._launch(device.topk_count, tiles, keys, threshold, greater, equal, n, TILE=_TILE)
        room = k - greater.sum()
        greater, equal = before = found.cumsum(1) - found
        self._launch(
            device.topk_place, tiles,
            keys, threshold, greater, equal, room, vector, residual, carry, out[4 * chunks :], indices, values, n,
            TILE=_TILE,
        )  # fmt: skip
        starts = (before[0] + before[1].minimum(room))[:: _CHUNK // _TILE]
        counts = torch.diff(starts, append=starts.new_full((1,), k)).to(torch.int32)
        out[: 4 * chunks].copy_(counts.view(torch.uint8))
        return -1

    def topk_settle(
        self,
        vector: torch.Tensor,
        residual: torch.Tensor,
        carry: float,
        indices: torch.Tensor,
        values: torch.Tensor,
        decoded: torch.Tensor,
    ) -> None:
        """Make `residual` what is left after `decoded` was sent for `values`."""
        n, k = vector.numel(), values.numel()
        self._launch(device.settle, _over(n, _TILE), vector, residual, carry, n, TILE=_TILE)
        self._launch(
            device.settle_kept, _over(k, _TILE), residual, carry, indices, values, decoded, k, TILE=_TILE
        )  # fmt: skip

    def topk_add(self, code: torch.Tensor, values: torch.Tensor, total: torch.Tensor) -> bool:
        """Add `values` where `code` says; False, and nothing is added, where it is no code for this `total`.

        By torch: it is work on the few entries, and the answer must be waited for anyway.
        """
        n, k, chunks = total.numel(), values.numel(), _over(total.numel(), _CHUNK)
        counts = code[: 4 * chunks].clone().view(torch.int32).to(torch.int64)
        ends = counts.cumsum(0)
        low, high = code[4 * chunks : 4 * chunks + 2 * k].view(k, 2).to(torch.int64).unbind(1)
        chunk = torch.searchsorted(ends, torch.arange(k, device=code.device), right=True)
        at = chunk * _CHUNK + low + (high << 8)
        if not bool((counts >= 0).all() & (ends[-1] == k) & (at < n).all()):
            return False
        total[at] += values
        return True


def _index(first: torch.Tensor, n: int) -> int:
    found = int(first)
    return -1 if found == n else found


def _places(code: torch.Tensor, n: int, size: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Where scales begin in the code of n elements by blocks of `size`, where the rest does, and that one's bytes."""
    codes = code[4 * _over(n, size) :]
    return code, codes, codes.numel()
