"""Codecs: int8, int4 and sign by blocks, Top-K, and casts, each with a definition in torch and a fast path."""

from __future__ import annotations

import torch

from distroml.runtime.compress.codec import Codec
from distroml.runtime.compress.codecs.blocks import BF16, FLOAT32, INT4, INT8, SIGN, BlockCodec, CastCodec
from distroml.runtime.compress.codecs.checks import check_add, check_vector
from distroml.runtime.compress.codecs.errors import CodecError, DamagedCode, NonFinite
from distroml.runtime.compress.codecs.noise import fold
from distroml.runtime.compress.codecs.topk import TopK
from distroml.runtime.compress.native import kernels_for

__all__ = [
    "BF16",
    "FLOAT32",
    "INT4",
    "INT8",
    "SIGN",
    "BlockCodec",
    "CastCodec",
    "CodecError",
    "DamagedCode",
    "NonFinite",
    "TopK",
    "add_all",
    "first_nonfinite",
    "fold",
    "sum_all",
]


def add_all(codec: Codec, codes: torch.Tensor, total: torch.Tensor) -> None:
    """Add the vector of each row of `codes`, uint8 `[count, size(n)]`, to `total`, float32 `[n]`, in order.

    The same bits as one `add` after the other, with one pass over `total` where the codec's kernels can.
    """
    _add_all(codec, codes, total, fresh=False)


def sum_all(codec: Codec, codes: torch.Tensor, total: torch.Tensor) -> None:
    """`total`, whatever it holds, becomes what `add_all` makes of zeros, without a pass more to make it zero."""
    _add_all(codec, codes, total, fresh=True)


def _add_all(codec: Codec, codes: torch.Tensor, total: torch.Tensor, *, fresh: bool) -> None:
    if isinstance(codec, BlockCodec) and len(codes) and codes.stride(1) == 1:
        check_add(codes[0], total, codec.size(total.numel()))
        codec.add_all(codes, total, fresh=fresh)
        return
    if fresh:
        total.zero_()
    for code in codes:
        codec.add(code, total)


def first_nonfinite(vector: torch.Tensor) -> int | None:
    """Index of the first NaN or infinity of a float32 vector. Encoders look by themselves and raise `NonFinite`."""
    check_vector(vector)
    kernels = kernels_for(vector)
    if kernels is not None:
        found = kernels.first_nonfinite(vector)
        return None if found < 0 else found
    finite = vector.isfinite()
    return None if finite.all() else int((~finite).nonzero()[0])
