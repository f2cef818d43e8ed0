"""PowerSGD's arithmetic: kernels against torch in float64, the same bits at every level, residuals that keep all."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distroml.runtime.compress import lowrank
from distroml.runtime.compress.lowrank import Matrices
from distroml.runtime.compress.native import Kernels, kernels


def matrices(rows: int, columns: int, count: int) -> tuple[Matrices, torch.Tensor]:
    """Matrices with 3 strange elements before, between and behind, and a buffer of them."""
    size = rows * columns + 3
    numel = 3 + count * size
    flat = torch.randn(numel, generator=torch.Generator().manual_seed(rows * columns))
    return Matrices(torch.arange(count) * size + 3, rows, columns), flat


def step(flat: torch.Tensor, residual: torch.Tensor, shape: Matrices, rank: int) -> list[torch.Tensor]:
    """One rank's step of PowerSGD: P, its orthonormal form, Q, and what is restored."""
    q = torch.randn(shape.offsets.numel(), shape.columns, rank, generator=torch.Generator().manual_seed(1))
    p = lowrank.project(flat, residual, 2.0, shape, q)
    basis = p.clone()
    lowrank.orthogonalise(basis)
    q = lowrank.project_back(residual, shape, basis)
    lowrank.subtract(residual, 2.0, shape, basis, q)
    restored = flat.clone()
    lowrank.restore(restored, shape, basis, q)
    return [p, basis, q, restored, residual]


@given(
    rows=st.integers(1, 40), columns=st.integers(1, 70), count=st.integers(1, 3), rank=st.integers(1, 9),
)  # fmt: skip
def test_every_level_and_torch_agree(rows: int, columns: int, count: int, rank: int) -> None:
    rank = min(rank, rows, columns)
    shape, flat = matrices(rows, columns, count)
    loaded = kernels()
    assert isinstance(loaded, Kernels), "the kernels are not built: make setup"
    found = []
    for level in range(3):
        loaded.at_most(level)
        found.append(step(flat, torch.ones_like(flat), shape, rank))
    for other in found[:2]:
        for a, b in zip(found[2], other, strict=True):
            assert torch.equal(a, b)
    p, _, q, restored, residual = found[2]
    v = torch.stack(shape.of(flat + 2.0)).double()
    start = torch.randn(count, columns, rank, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(p.double(), v @ start, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(q.double(), v.mT @ found[2][1].double(), rtol=1e-4, atol=1e-4)
    left, kept = torch.stack(shape.of(restored)), torch.stack(shape.of(residual))
    torch.testing.assert_close(left.double() + 2.0 * kept.double(), v, rtol=1e-5, atol=1e-5)
    between = torch.ones_like(flat, dtype=torch.bool)
    for view in shape.of(between):
        view.zero_()
    assert torch.equal(restored[between], flat[between])
    assert (residual[between] == 1).all()


def test_torch_is_the_path_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, flat = matrices(20, 33, 3)
    fast = step(flat, torch.ones_like(flat), shape, 4)
    monkeypatch.setattr(lowrank, "kernels_for", lambda _: None)
    for a, b in zip(fast, step(flat, torch.ones_like(flat), shape, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("native", [True, False])
def test_a_direction_that_is_spanned_already_becomes_zero(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(lowrank, "kernels_for", lambda _: None)
    p = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(1))
    p[0, :, 2] = 3 * p[0, :, 0] - p[0, :, 1]
    p[1, :, 1] = 0
    lowrank.orthogonalise(p)
    assert not p[0, :, 2].any()
    assert not p[1, :, 1].any()
    gram = p.mT @ p
    expected = torch.stack([torch.diag(torch.tensor([1.0, 1, 0, 1])), torch.diag(torch.tensor([1.0, 0, 1, 1]))])
    torch.testing.assert_close(gram, expected, rtol=0, atol=1e-6)


def test_a_rank_above_the_matrix_is_refused() -> None:
    shape, flat = matrices(3, 5, 1)
    with pytest.raises(ValueError, match="no approximation of rank 4: choose 1 to 3"):
        lowrank.project(flat, None, 1.0, shape, torch.ones(1, 5, 4))
    with pytest.raises(ValueError, match=r"Q must be \[1, 5, rank\]"):
        lowrank.project(flat, None, 1.0, shape, torch.ones(2, 5, 1))


def test_without_a_residual_the_buffer_is_projected_and_unchanged() -> None:
    shape, flat = matrices(8, 8, 2)
    before = flat.clone()
    q = torch.eye(8).repeat(2, 1, 1)
    assert torch.equal(lowrank.project(flat, None, 1.0, shape, q), torch.stack(shape.of(flat)))
    assert torch.equal(flat, before)
