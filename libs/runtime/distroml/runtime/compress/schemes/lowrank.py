"""Products of batched matrices with thin factors: by compiled kernels where there are any, else by torch.

Factors lie by column, `[count, rank, side]`, so that a code's block holds numbers of one column. Kernels give the same
bits on unlike processors; torch gives them on like ones only.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from distroml.runtime.compress.native import kernels_for
from distroml.runtime.compress.schemes.matrices import Batch


def project(buffer: torch.Tensor, batch: Batch, start: torch.Tensor) -> torch.Tensor:
    """The first factor: each matrix of `buffer` times its `start`, `[count, rank, columns]`."""
    kernels = kernels_for(buffer)
    if kernels is None:
        return torch.bmm(start, batch.of(buffer).mT)
    out = buffer.new_empty(batch.count, batch.rows, start.shape[1])
    kernels.project(buffer, None, 1.0, batch.offsets, start.mT.contiguous(), out)
    return out.mT


def project_back(buffer: torch.Tensor, batch: Batch, basis: torch.Tensor) -> torch.Tensor:
    """The second factor: each matrix of `buffer`, transposed, times its `basis`, `[count, rank, rows]`."""
    kernels = kernels_for(buffer)
    if kernels is None:
        return torch.bmm(basis, batch.of(buffer))
    out = buffer.new_empty(batch.count, batch.columns, basis.shape[1])
    kernels.project_back(buffer, batch.offsets, basis.mT.contiguous(), out)
    return out.mT


def subtract(buffer: torch.Tensor, batch: Batch, basis: torch.Tensor, factor: torch.Tensor) -> None:
    """Take the product of both factors off each matrix of `buffer`."""
    kernels = kernels_for(buffer)
    if kernels is None:
        batch.of(buffer).baddbmm_(basis.mT, factor, alpha=-1.0)
    else:
        kernels.subtract(buffer, 1.0, batch.offsets, basis.mT.contiguous(), factor.mT.contiguous())


def restore(buffer: torch.Tensor, batch: Batch, basis: torch.Tensor, factor: torch.Tensor) -> None:
    """Each matrix of `buffer` becomes the product of both factors."""
    kernels = kernels_for(buffer)
    if kernels is None:
        batch.of(buffer).baddbmm_(basis.mT, factor, beta=0.0)
    else:
        kernels.restore(buffer, batch.offsets, basis.mT.contiguous(), factor.mT.contiguous())


def orthonormal(vectors: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the span of each batch's rows: float32 `[count, rank, n]`, to float32 precision.

    Rows that the others span already give zero rows instead of noise.
    """
    kernels = kernels_for(vectors)
    if kernels is None:
        return orthonormal_in_torch(vectors)
    columns = vectors.mT.contiguous()
    kernels.orthogonalise(columns)
    return columns.mT


def orthonormal_in_torch(vectors: torch.Tensor) -> torch.Tensor:
    """The same by the eigenvectors of the Gram matrix in float64, twice, as Cholesky-QR2 does (Fukaya et al., 2014).

    No loop over vectors; numbers that are not finite stay so.
    """
    basis = vectors.double()
    for _ in range(2):
        values, rotation = _eigen((basis @ basis.mT).nan_to_num())
        # Below this a direction is rounding of the larger ones.
        kept = values > values[:, -1:].clamp(min=0.0) * (4 * torch.finfo(torch.float32).eps) ** 2
        scale = torch.where(kept, values, torch.inf).rsqrt()
        basis = (rotation * scale[:, None, :]).mT @ basis
    return basis.to(torch.float32)


def _eigen(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = cast("Any", torch.linalg).eigh(symmetric)
    return values, vectors
