"""Which MPI type moves a tensor, and which MPI operation reduces it.

Moving needs the size of an element only, so every dtype moves. Reducing knows float32, float64, the integers that
torch and C share, bool (as a logical value), and complex numbers (their parts are summed). float16 and bfloat16, which
MPI 3 has no types for, are reduced by operations of our own: 16 bits on the wire, each addition rounded to 16 bits, as
Gloo does it. `AVG` is a sum that is divided where it arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_MOVED_AS = {1: "BYTE", 2: "INT16_T", 4: "INT32_T", 8: "INT64_T", 16: "C_DOUBLE_COMPLEX"}

_REDUCED_AS = {
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.int8: "INT8_T",
    torch.uint8: "UINT8_T",
    torch.int16: "INT16_T",
    torch.int32: "INT32_T",
    torch.int64: "INT64_T",
}
# By torch's names.
_OPERATIONS = {
    "SUM": "SUM",
    "AVG": "SUM",
    "PRODUCT": "PROD",
    "MIN": "MIN",
    "MAX": "MAX",
    "BAND": "BAND",
    "BOR": "BOR",
    "BXOR": "BXOR",
}
# A sum of truths is "any", as with torch's other back ends.
_OF_TRUTHS = {"SUM": "BOR", "PROD": "BAND", "MIN": "BAND", "MAX": "BOR", "BAND": "BAND", "BOR": "BOR", "BXOR": "BXOR"}
_BITWISE = ("BAND", "BOR", "BXOR")

_HALVES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "SUM": torch.add,
    "PROD": torch.mul,
    "MIN": torch.minimum,
    "MAX": torch.maximum,
}

Buffer = tuple[Any, int, Any]


class Kinds:
    """MPI's types and operations for tensors, over one loaded MPI."""

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._own: dict[tuple[torch.dtype, str], Any] = {}

    def address(self, tensor: torch.Tensor) -> Any:
        """The memory of a contiguous CPU tensor."""
        return self._mpi.buffer.fromaddress(tensor.data_ptr(), tensor.numel() * tensor.element_size())

    def mover(self, dtype: torch.dtype) -> Any:
        """The MPI type of one element that is only moved."""
        return getattr(self._mpi, _MOVED_AS[dtype.itemsize])

    def moved(self, tensor: torch.Tensor) -> Buffer:
        """All of `tensor`, to be moved."""
        return self.address(tensor), tensor.numel(), self.mover(tensor.dtype)

    def reduction(self, tensor: torch.Tensor, op: Any) -> tuple[torch.Tensor, Any, Any]:
        """`tensor` as MPI can reduce it, the MPI type of its elements, and the operation.

        Raises:
            TypeError: no such reduction of this dtype; says which there are.
        """
        asked, dtype = _name_of(op), tensor.dtype
        name = _OPERATIONS.get(asked)
        if name is None:
            raise TypeError(f"the back end mpi cannot reduce by {asked}; it knows {', '.join(_OPERATIONS)}")
        if dtype == torch.bool:
            return tensor.view(torch.uint8), self._mpi.UINT8_T, getattr(self._mpi, _OF_TRUTHS[name])
        if dtype in (torch.float16, torch.bfloat16) and name in _HALVES:
            return tensor, self._mpi.INT16_T, self._half(dtype, name)
        if dtype.is_complex and name == "SUM":
            parts = torch.view_as_real(tensor)
            return parts, getattr(self._mpi, _REDUCED_AS[parts.dtype]), self._mpi.SUM
        if dtype in _REDUCED_AS and not (name in _BITWISE and dtype.is_floating_point):
            return tensor, getattr(self._mpi, _REDUCED_AS[dtype]), getattr(self._mpi, name)
        raise TypeError(
            f"the back end mpi cannot reduce {dtype} by {name}; convert to float32 or an integer type, or use gloo"
        )

    def _half(self, dtype: torch.dtype, name: str) -> Any:
        if (dtype, name) not in self._own:
            combine = _HALVES[name]

            def apply(incoming: Any, mine: Any, _type: Any) -> None:
                if len(mine):  # MPI calls it for no elements, too
                    into = torch.frombuffer(mine, dtype=dtype)
                    into.copy_(combine(torch.frombuffer(incoming, dtype=dtype), into))

            self._own[dtype, name] = self._mpi.Op.Create(apply, commute=True)
        return self._own[dtype, name]


def is_average(op: Any) -> bool:
    """Whether the sum is to be divided by the number of ranks."""
    return _name_of(op) == "AVG"


def _name_of(op: Any) -> str:
    """Of torch's `ReduceOp`, which carries its kind, or of the kind."""
    return getattr(op, "op", op).name
