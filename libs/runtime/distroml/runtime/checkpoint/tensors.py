"""Tensors as raw little-endian bytes in C order."""

from __future__ import annotations

import math
import sys

import torch

from distroml.manifest import ITEM_BYTES
from distroml.runtime.checkpoint.errors import CheckpointError, UnsupportedState

_DTYPES: dict[str, torch.dtype] = {
    name: found for name in ITEM_BYTES if isinstance(found := getattr(torch, name, None), torch.dtype)
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype, where: str) -> str:
    """The manifest's name of a dtype; raises `UnsupportedState`."""
    name = _NAMES.get(dtype)
    if name is None:
        raise UnsupportedState(where, f"{dtype} has no raw layout; convert it to a plain dtype")
    return name


def dtype_of(name: str) -> torch.dtype:
    """The dtype that a manifest names; raises `CheckpointError` where this torch has none of that name."""
    dtype = _DTYPES.get(name)
    if dtype is None:
        raise CheckpointError(f"this torch ({torch.__version__}) has no dtype {name!r}; use the release that saved it")
    return dtype


def check_storable(tensor: torch.Tensor, where: str) -> None:
    """Raises `UnsupportedState` where a tensor's bytes are not its whole value."""
    if sys.byteorder != "little":
        raise UnsupportedState(where, "checkpoints are little-endian, this machine is not")
    if tensor.layout is not torch.strided:
        raise UnsupportedState(where, f"its layout is {tensor.layout}; call to_dense() before saving")
    if tensor.is_meta:
        raise UnsupportedState(where, "it is a meta tensor without data; materialise the model first")
    dtype_name(tensor.dtype, where)


def tensor_bytes(tensor: torch.Tensor, where: str = "tensor") -> memoryview:
    """The tensor's bytes in C order: a view of its memory where it is contiguous on the CPU, else of a copy."""
    check_storable(tensor, where)
    data = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    if data.numel() == 0:
        return memoryview(b"")
    return data.reshape(-1).view(torch.uint8).numpy().data


def writable_bytes(tensor: torch.Tensor) -> memoryview | None:
    """A writable view of the tensor's memory in C order, or None where it has no such layout."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def tensor_from(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor over `data`; raises `ValueError` where the number of bytes is not the shape's."""
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are not {shape} of {dtype}")
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
