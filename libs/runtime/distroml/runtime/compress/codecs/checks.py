"""What every codec asks of its tensors before it changes any of them."""

from __future__ import annotations

import struct

import torch

from distroml.runtime.compress.codecs.errors import CodecError


def _flat(tensor: torch.Tensor, what: str, dtype: torch.dtype, numel: int | None = None) -> None:
    if tensor.dtype != dtype:
        raise CodecError(f"{what} must be {dtype}, not {tensor.dtype}; compression is for float32 gradients only")
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise CodecError(f"{what} must be 1-D and contiguous, not of shape {tuple(tensor.shape)}; flatten it first")
    if numel is not None and tensor.numel() != numel:
        raise CodecError(f"{what} must have {numel} elements, not {tensor.numel()}; are both of the same buffer?")


def check_vector(vector: torch.Tensor) -> None:
    """Raises `CodecError` unless `vector` is a float32 vector of at least one element."""
    _flat(vector, "the vector to compress", torch.float32)
    if not vector.numel():
        raise CodecError("the vector to compress is empty; leave it out of the exchange")


def check_encode(
    vector: torch.Tensor, residual: torch.Tensor | None, carry: float, out: torch.Tensor, size: int
) -> None:
    """Raises `CodecError` unless these are arguments that `Codec.encode` can do with."""
    check_vector(vector)
    _flat(out, "the buffer for the code", torch.uint8, size)
    if residual is not None:
        _flat(residual, "the residual", torch.float32, vector.numel())
    if len({vector.device, out.device, *(() if residual is None else (residual.device,))}) > 1:
        raise CodecError(f"vector, residual and code must be on one device, {vector.device}")
    try:
        (rounded,) = struct.unpack("f", struct.pack("f", carry))
    except OverflowError:
        rounded = float("inf")
    if not 0 < rounded < float("inf"):
        raise CodecError(f"carry must be above 0 and finite in float32, not {carry}")


def check_add(code: torch.Tensor, total: torch.Tensor, size: int) -> None:
    """Raises `CodecError` unless these are arguments that `Codec.add` can do with."""
    check_vector(total)
    _flat(code, "the code", torch.uint8, size)
    if code.device != total.device:
        raise CodecError(f"code and total must be on one device, not {code.device} and {total.device}")
