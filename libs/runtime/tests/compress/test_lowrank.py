"""PowerSGD's kernels: right against float64, the same bits at every level, and nothing lost between two of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distroml.runtime.compress.native import Kernels, kernels

CARRY = 2.0


@pytest.fixture(scope="module")
def loaded() -> Iterator[Kernels]:
    found = kernels()
    assert isinstance(found, Kernels), "the kernels are not built: make setup"
    yield found
    found.at_most(2)


def buffer(rows: int, columns: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets of matrices, and a buffer with 3 elements of something else before, between and behind them."""
    size = rows * columns + 3
    flat = torch.randn(3 + count * size, generator=torch.Generator().manual_seed(rows * columns))
    return torch.arange(count) * size + 3, flat


def cut(flat: torch.Tensor, offsets: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    return torch.stack([flat[at : at + rows * columns].view(rows, columns) for at in offsets.tolist()])


def start(count: int, columns: int, rank: int) -> torch.Tensor:
    return torch.randn(count, columns, rank, generator=torch.Generator().manual_seed(1))


def step(
    loaded: Kernels, flat: torch.Tensor, residual: torch.Tensor, offsets: torch.Tensor, rows: int, q: torch.Tensor
) -> list[torch.Tensor]:
    """One rank's step: P, its orthonormal form, Q, what is restored, and the new residual."""
    p, back, restored = torch.empty(len(offsets), rows, q.shape[2]), torch.empty_like(q), flat.clone()
    loaded.project(flat, residual, CARRY, offsets, q, p)
    basis = p.clone()
    loaded.orthogonalise(basis)
    loaded.project_back(residual, offsets, basis, back)
    loaded.subtract(residual, CARRY, offsets, basis, back)
    loaded.restore(restored, offsets, basis, back)
    return [p, basis, back, restored, residual]


@given(rows=st.integers(1, 40), columns=st.integers(1, 70), count=st.integers(1, 3), rank=st.integers(1, 9))
def test_a_step_is_right_and_the_same_at_every_level(
    loaded: Kernels, rows: int, columns: int, count: int, rank: int
) -> None:
    offsets, flat = buffer(rows, columns, count)
    q = start(count, columns, rank)
    found: list[list[torch.Tensor]] = []
    for level in (0, 1, 2):
        loaded.at_most(level)
        found.append(step(loaded, flat, torch.ones_like(flat), offsets, rows, q))
    for level in (0, 1):
        for a, b in zip(found[2], found[level], strict=True):
            assert torch.equal(a, b)
    p, basis, back, restored, residual = found[2]
    v = cut(flat + CARRY, offsets, rows, columns).double()
    torch.testing.assert_close(p.double(), v @ q.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back.double(), v.mT @ basis.double(), rtol=1e-4, atol=1e-4)
    whole = cut(restored, offsets, rows, columns).double() + CARRY * cut(residual, offsets, rows, columns).double()
    torch.testing.assert_close(whole, v, rtol=1e-5, atol=1e-5)
    between = torch.ones_like(flat, dtype=torch.bool)
    for at in offsets.tolist():
        between[at : at + rows * columns] = False
    assert torch.equal(restored[between], flat[between])
    assert (residual[between] == 1).all()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_columns_become_orthonormal_and_a_spanned_one_zero(loaded: Kernels, level: int) -> None:
    loaded.at_most(level)
    p = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(1))
    p[0, :, 2] = 3 * p[0, :, 0] - p[0, :, 1]
    p[1, :, 1] = 0
    loaded.orthogonalise(p)
    assert not p[0, :, 2].any()
    assert not p[1, :, 1].any()
    expected = torch.stack([torch.diag(torch.tensor([1.0, 1, 0, 1])), torch.diag(torch.tensor([1.0, 0, 1, 1]))])
    torch.testing.assert_close(p.mT @ p, expected, rtol=0, atol=1e-6)


def test_more_columns_than_rows_leave_no_noise(loaded: Kernels) -> None:
    p = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(1))
    loaded.orthogonalise(p)
    torch.testing.assert_close(p[0, :, :3].T @ p[0, :, :3], torch.eye(3), rtol=0, atol=1e-6)
    assert not p[0, :, 3:].any()


def test_without_a_residual_the_buffer_is_projected_and_unchanged(loaded: Kernels) -> None:
    offsets, flat = buffer(8, 8, 2)
    before, p = flat.clone(), torch.empty(2, 8, 8)
    loaded.project(flat, None, 1.0, offsets, torch.eye(8).repeat(2, 1, 1), p)
    assert torch.equal(p, cut(flat, offsets, 8, 8))
    assert torch.equal(flat, before)
