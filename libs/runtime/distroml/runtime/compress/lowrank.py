"""PowerSGD's arithmetic (Vogels et al., 2019) over all matrices of one shape, where they lie in a flat buffer.

V stands for `flat + carry * residual`. One step is `project` (V Q, V being left in the residual), a sum of P over the
ranks, `orthogonalise`, `project_back` (V^T P), `subtract` by this rank's Q (the new residual), a sum of Q, `restore`.
With kernels all ranks that hold the same P and Q restore the same bits, whatever their processors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distroml.runtime.compress.codecs.oracle import LIMIT
from distroml.runtime.compress.native import kernels, kernels_for


def arithmetic(device: torch.device) -> str:
    """Who forms the products of tensors on `device`: where that differs, the same factors restore other bits."""
    if device.type == "cuda":
        return f"torch on {torch.cuda.get_device_name(device)}"
    if kernels() is not None:
        return "compiled kernels"
    return f"torch without compiled kernels, on {torch.backends.cpu.get_cpu_capability()}"


@dataclass(frozen=True, slots=True)
class Matrices:
    """`[rows, columns]` matrices that begin at `offsets`, int64 on the CPU, of a buffer and that share no element."""

    offsets: torch.Tensor
    rows: int
    columns: int

    def of(self, flat: torch.Tensor) -> list[torch.Tensor]:
        """Each as a view of `flat`."""
        size = self.rows * self.columns
        starts = [int(at) for at in self.offsets]
        return [flat[start : start + size].view(self.rows, self.columns) for start in starts]


def project(
    flat: torch.Tensor, residual: torch.Tensor | None, carry: float, matrices: Matrices, q: torch.Tensor
) -> torch.Tensor:
    """P = V Q, `[count, rows, rank]`, for Q of `[count, columns, rank]`; V takes the residual's place.

    Sums are held within +-2^127, as codecs do. Raises ValueError where Q is of another shape or a rank too great.
    """
    count, columns, rank = q.shape
    if (count, columns) != (matrices.offsets.numel(), matrices.columns):
        raise ValueError(f"Q must be [{matrices.offsets.numel()}, {matrices.columns}, rank], not {list(q.shape)}")
    if not 0 < rank <= min(matrices.rows, columns):
        raise ValueError(
            f"a [{matrices.rows}, {columns}] matrix has no approximation of rank {rank}: "
            f"choose 1 to {min(matrices.rows, columns)}"
        )
    p = q.new_empty(count, matrices.rows, rank)
    kernels = kernels_for(flat)
    if kernels is not None:
        kernels.project(flat, residual, carry, matrices.offsets, q.contiguous(), p)
        return p
    views = matrices.of(flat)
    if residual is not None:
        kept = matrices.of(residual)
        for view, own in zip(views, kept, strict=True):
            own.mul_(carry).add_(view).clamp_(-LIMIT, LIMIT)
        views = kept
    return torch.bmm(torch.stack(views), q, out=p)


def orthogonalise(p: torch.Tensor) -> None:
    """Make the columns of each `p[i]` orthonormal in place; one that those before it span becomes zero.

    Gram-Schmidt in float64, twice over each column ("twice is enough", Kahan in Parlett, 1980).
    """
    kernels = kernels_for(p)
    if kernels is not None and p.is_contiguous():
        kernels.orthogonalise(p)
        return
    done = p.to(torch.float64)
    for column in range(p.shape[2]):
        own, others = done[:, :, column], done[:, :, :column]
        before = own.square().sum(1)
        for _ in range(2):
            own -= (others @ (others.mT @ own[:, :, None]))[:, :, 0]
        after = own.square().sum(1)
        # A few units of float32's rounding: what is left is no direction.
        own *= torch.where(after > 1e-12 * before, after.rsqrt(), 0.0)[:, None]
    p.copy_(done)


def project_back(v: torch.Tensor, matrices: Matrices, p: torch.Tensor) -> torch.Tensor:
    """Q = V^T P, `[count, columns, rank]`; `v` is what `project` left in the residual, or the buffer."""
    q = p.new_empty(p.shape[0], matrices.columns, p.shape[2])
    kernels = kernels_for(v)
    if kernels is not None:
        kernels.project_back(v, matrices.offsets, p.contiguous(), q)
        return q
    return torch.bmm(torch.stack(matrices.of(v)).mT, p, out=q)


def subtract(residual: torch.Tensor, carry: float, matrices: Matrices, p: torch.Tensor, q: torch.Tensor) -> None:
    """The residual becomes (V - P Q^T) / carry; Q is this rank's own, so that nothing of V is lost over the ranks."""
    kernels = kernels_for(residual)
    if kernels is not None:
        kernels.subtract(residual, carry, matrices.offsets, p.contiguous(), q.contiguous())
        return
    for own, product in zip(matrices.of(residual), p @ q.mT, strict=True):
        own.sub_(product).div_(carry)


def restore(flat: torch.Tensor, matrices: Matrices, p: torch.Tensor, q: torch.Tensor) -> None:
    """The matrices of `flat` become P Q^T."""
    kernels = kernels_for(flat)
    if kernels is not None:
        kernels.restore(flat, matrices.offsets, p.contiguous(), q.contiguous())
        return
    for view, product in zip(matrices.of(flat), p @ q.mT, strict=True):
        view.copy_(product)
