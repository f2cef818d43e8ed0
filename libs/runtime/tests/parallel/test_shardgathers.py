"""Codes of gathered parameters: as near as their scales say, exact where nothing is coded, and honest about NaN."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distroml.runtime.parallel.shardgathers import Stretch, decode, encode


def through(vectors: torch.Tensor, stretches: list[Stretch]) -> torch.Tensor:
    """What all ranks see of each rank's vector."""
    out = torch.empty_like(vectors)
    decode(torch.stack([encode(vector, stretches) for vector in vectors]), stretches, out)
    return out


@given(sizes=st.lists(st.tuples(st.integers(1, 600), st.booleans()), min_size=1, max_size=5), seed=st.integers(0, 99))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_block_is_within_half_a_step_and_what_is_not_coded_is_exact(
    sizes: list[tuple[int, bool]], seed: int, dtype: torch.dtype
) -> None:
    stretches: list[Stretch] = []
    for numel, coded in sizes:
        stretches.append(Stretch(sum(one.numel for one in stretches), numel, coded))
    total = sum(one.numel for one in stretches)
    vectors = torch.randn(2, total, generator=torch.Generator().manual_seed(seed)).to(dtype) * 10.0
    vectors[:, : total // 3] *= 1e-3
    seen = through(vectors, stretches)
    assert len(encode(vectors[0], stretches)) == sum(one.size(dtype.itemsize) for one in stretches)
    assert torch.equal(through(vectors, stretches), seen), "rounding is not the same each time"
    for one in stretches:
        was, got = (each[:, one.start : one.start + one.numel] for each in (vectors, seen))
        if not one.coded:
            assert torch.equal(was, got)
            continue
        for block, back in zip(was.split(256, 1), got.split(256, 1), strict=True):
            largest = block.double().abs().amax(1, keepdim=True)
            # Half a step, and what the dtype rounds.
            allowed = largest * (0.5001 / 127 + torch.finfo(dtype).eps)
            assert ((block.double() - back.double()).abs() <= allowed).all()


def test_zeros_stay_and_what_is_no_number_is_none_on_any_rank() -> None:
    vector = torch.zeros(1, 600)
    vector[0, 300] = float("nan")
    vector[0, 599] = float("inf")
    seen = through(vector, [Stretch(0, 600, coded=True)])[0]
    assert torch.equal(seen[:256], torch.zeros(256))
    assert not seen[256:].isfinite().any()
