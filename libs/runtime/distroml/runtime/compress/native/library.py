"""The C interface of the kernels, typed. ctypes lets go of the interpreter's lock while a kernel runs.

Callers promise what the kernels rely on: CPU tensors, contiguous where nothing else is said, of the types and sizes
that are said.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_bool, c_char_p, c_float, c_int32, c_int64, c_uint32, c_void_p
from pathlib import Path
from typing import Literal

import torch

from distroml.runtime.compress.native.build import sources_hash

Kind = Literal["int8", "int4", "sign", "bf16"]

_KINDS: tuple[Kind, ...] = ("int8", "int4", "sign", "bf16")

_NO_MEMORY = -2
_MATRICES = (c_void_p, c_int64, c_int64, c_int64, c_int64)  # offsets, count, rows, columns, rank
_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "level": (c_int32, (c_int32,)),
    "sources": (c_char_p, ()),
    "first_nonfinite": (c_int64, (c_void_p, c_int64)),
    **{
        f"encode_{kind}": (c_int64, (c_void_p, c_void_p, c_float, c_uint32, c_int64, c_bool, c_void_p))
        for kind in _KINDS
    },
    **{f"add_{kind}": (None, (c_void_p, c_int64, c_int64, c_int64, c_bool, c_void_p)) for kind in _KINDS},
    "topk_select": (
        c_int64,
        (c_void_p, c_void_p, c_float, c_uint32, c_int64, c_int64, c_void_p, c_void_p, c_void_p),
    ),
    "topk_settle": (None, (c_void_p, c_void_p, c_float, c_int64, c_int64, c_void_p, c_void_p, c_void_p)),
    "topk_add": (c_bool, (c_void_p, c_void_p, c_int64, c_int64, c_void_p)),
    "lowrank_project": (c_int64, (c_void_p, c_void_p, c_float, *_MATRICES, c_void_p, c_void_p)),
    "lowrank_project_back": (c_int64, (c_void_p, *_MATRICES, c_void_p, c_void_p)),
    "lowrank_restore": (c_int64, (c_void_p, *_MATRICES, c_void_p, c_void_p)),
    "lowrank_subtract": (c_int64, (c_void_p, c_float, *_MATRICES, c_void_p, c_void_p)),
    "orthogonalise": (c_int64, (c_void_p, c_int64, c_int64, c_int64)),
}


class Unusable(Exception):
    """The library is missing, does not load here, or was built from other sources."""


def _at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _checked(found: int) -> int:
    if found == _NO_MEMORY:
        raise MemoryError("the compression kernels got no memory for their scratch space")
    return found


class Kernels:
    """The library at `path`; raises `Unusable`."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise Unusable(f"its kernels were not built ({path} is missing)")
        try:
            library = ctypes.CDLL(str(path))
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(library, f"distroml_{name}")
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise Unusable(f"its kernels do not load: {error}") from error
        if (built := library.distroml_sources().decode()) != (wanted := sources_hash()):
            raise Unusable(f"its kernels were built from other sources ({built}, not {wanted})")
        self._library = library

    def at_most(self, level: int) -> int:
        """Use no more of the processor than level 0 (any), 1 (AVX2) or 2 (AVX-512); returns the level now used."""
        return int(self._library.distroml_level(level))

    def first_nonfinite(self, x: torch.Tensor) -> int:
        """Index of the first NaN or infinity of float32 `x`, or -1."""
        return int(self._library.distroml_first_nonfinite(_at(x), x.numel()))

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
        """`Codec.encode` with a seed of 32 bits; returns -1, or where `vector` is not finite, nothing being changed."""
        encode = getattr(self._library, f"distroml_encode_{kind}")
        return int(encode(_at(vector), _at(residual), carry, seed, vector.numel(), finite, _at(out)))

    def add(self, kind: Kind, codes: torch.Tensor, total: torch.Tensor, *, fresh: bool = False) -> None:
        """Add the vectors of `codes`, uint8 `[count, size]` of contiguous rows, to `total` in their order.

        A `fresh` total is taken for zero, whatever it holds.
        """
        add = getattr(self._library, f"distroml_add_{kind}")
        add(_at(codes), codes.stride(0), codes.shape[0], total.numel(), fresh, _at(total))

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
        """Write counts and offsets of the greatest entries to `out`; also `indices` (int32), `values`. As `encode`."""
        sizes, found = (vector.numel(), values.numel()), (_at(out), _at(indices), _at(values))
        select = self._library.distroml_topk_select
        return _checked(select(_at(vector), _at(residual), carry, seed, *sizes, *found))

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
        self._library.distroml_topk_settle(
            _at(vector), _at(residual), carry, vector.numel(), values.numel(), _at(indices), _at(values), _at(decoded)
        )

    def topk_add(self, code: torch.Tensor, values: torch.Tensor, total: torch.Tensor) -> bool:
        """Add `values` where `code` says; False, and nothing is added, where it is no code for this `total`."""
        return bool(self._library.distroml_topk_add(_at(code), _at(values), total.numel(), values.numel(), _at(total)))

    def project(
        self,
        flat: torch.Tensor,
        residual: torch.Tensor | None,
        carry: float,
        offsets: torch.Tensor,
        q: torch.Tensor,
        p: torch.Tensor,
    ) -> None:
        """`p[i] = V_i q[i]`, V being `flat + carry * residual`, which is left in `residual`; `offsets` is int64."""
        _checked(
            self._library.distroml_lowrank_project(
                _at(flat), _at(residual), carry, *_matrices(offsets, p, q), _at(q), _at(p)
            )
        )

    def orthogonalise(self, p: torch.Tensor) -> None:
        """Make the columns of each `p[i]` orthonormal; one that the others span becomes zero."""
        _checked(self._library.distroml_orthogonalise(_at(p), *p.shape))

    def project_back(self, flat: torch.Tensor, offsets: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> None:
        """`q[i] = V_i^T p[i]`, V being `flat`."""
        _checked(self._library.distroml_lowrank_project_back(_at(flat), *_matrices(offsets, p, q), _at(p), _at(q)))

    def restore(self, flat: torch.Tensor, offsets: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> None:
        """`p[i] q[i]^T` becomes the matrices of `flat`."""
        _checked(self._library.distroml_lowrank_restore(_at(flat), *_matrices(offsets, p, q), _at(p), _at(q)))

    def subtract(
        self, residual: torch.Tensor, carry: float, offsets: torch.Tensor, p: torch.Tensor, q: torch.Tensor
    ) -> None:
        """Residuals become `(V_i - p[i] q[i]^T) / carry`, V being what `residual` holds."""
        _checked(
            self._library.distroml_lowrank_subtract(_at(residual), carry, *_matrices(offsets, p, q), _at(p), _at(q))
        )


def _matrices(offsets: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> Sequence[int | None]:
    return _at(offsets), offsets.numel(), p.shape[1], q.shape[1], p.shape[2]
