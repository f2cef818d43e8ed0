"""Norms of 16-bit numbers leave neither their range nor their precision."""

from __future__ import annotations

import pytest
import torch

from distroml.runtime.typed import norm_of


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_beyond_16_bits_is_a_number(dtype: torch.dtype) -> None:
    norm = norm_of(torch.full((70_001,), 300.0, dtype=dtype))
    assert float(norm) == pytest.approx(300.0 * 70_001**0.5, rel=1e-4)


def test_wider_numbers_keep_their_kind() -> None:
    assert norm_of(torch.full((4,), 3.0, dtype=torch.float64)).dtype == torch.float64
    assert norm_of(torch.full((4,), 1e20)).isfinite().logical_not(), "float32 is no wider than it was"
