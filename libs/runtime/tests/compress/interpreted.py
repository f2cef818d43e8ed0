"""Run by `test_gpu.py` in a process of its own, where Triton interprets kernels on the CPU (TRITON_INTERPRET=1)."""

from __future__ import annotations

import pytest
import torch

from distroml.runtime.compress.codecs import SIGN, DamagedCode, NonFinite, TopK, oracle
from distroml.runtime.compress.codecs.fast import usable
from distroml.runtime.compress.gpu.launching import Kernels
from libs.runtime.tests.compress.test_codecs import CODECS, KINDS, decoded, order_matters, same_bits, vector

# The interpreter computes as a GPU does, which says nothing about an infinity.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
KERNELS = Kernels()

# Every edge of a block, byte, nibble and tile, with every kind of vector, in turn.
SIZES = (1, 2, 7, 9, 127, 129, 257, 513, 1023, 1025, 1500, 2049)
CARRIES = (1.0, 4096.0, 3.0, 1e-3)
CASES = [(numel, KINDS[index % 7], CARRIES[index % 4], index % 3 > 0) for index, numel in enumerate(SIZES)]


def agree(name: str, numel: int, kind: str, carry: float, feedback: bool, begin: int = 0, device: str = "cpu") -> None:
    """The kernels' bits on `device` are the definition's on the CPU (`tools/gpu_check` asks for a GPU)."""
    codec, seed = CODECS[name], 2**64 - 3 * numel
    before = vector(kind, numel, numel)
    x = before.clone().to(device)
    other = vector("normal", numel, numel + 1) * (1e-42 if kind == "denormal" else 0.3) if feedback else None
    residual = None if other is None else other.clone().to(device)
    naive = torch.full((begin + codec.size(numel) + 1,), 170, dtype=torch.uint8)
    fast = naive.to(device, copy=True)
    fast, naive = fast[begin:], naive[begin:]  # one more than the code: it stays as it is
    codec.encode_by(KERNELS, x, residual, carry, seed, fast[:-1])
    oracle.encode(codec.oracle, before, other, carry, seed, naive[:-1])
    assert torch.equal(fast.cpu(), naive)
    assert same_bits(x.cpu(), before)
    if residual is not None and other is not None:
        assert same_bits(residual.cpu(), other)
    total = vector("normal", numel, 5)
    expected = total + decoded(codec, naive[:-1], numel)
    total = total.to(device)
    codec.add_by(KERNELS, fast[None, :-1].contiguous(), total)
    assert same_bits(total.cpu(), expected)


@pytest.mark.parametrize("name", CODECS)
def test_triton_gives_the_bits_of_the_definition(name: str) -> None:
    for case in CASES:
        agree(name, *case)


@pytest.mark.parametrize("name", CODECS)
def test_a_code_may_begin_anywhere(name: str) -> None:
    agree(name, 1500, "normal", 2.0, True, begin=1)


@pytest.mark.parametrize(("numel", "kind"), [(65_536, "zeros"), (66_000, "normal")])
def test_top_k_over_chunks(numel: int, kind: str) -> None:
    agree("topk:0.01", numel, kind, 1.0, False)


def test_a_block_is_summed_in_the_order_of_the_definition() -> None:
    x = order_matters()
    fast, naive = torch.empty(2, SIGN.size(x.numel()), dtype=torch.uint8)
    SIGN.encode_by(KERNELS, x, None, 1.0, 0, fast)
    oracle.encode(SIGN.oracle, x, None, 1.0, 0, naive)
    assert torch.equal(fast, naive)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("bad", "at"), [(float("nan"), 0), (float("inf"), 4500), (float("-inf"), 4998)])
def test_what_is_not_finite_changes_nothing(name: str, bad: float, at: int) -> None:
    codec, x, residual = CODECS[name], vector("normal", 5000, 1), vector("normal", 5000, 2)
    x[at] = x[4999] = bad
    before, code = residual.clone(), torch.full((codec.size(5000),), 170, dtype=torch.uint8)
    with pytest.raises(NonFinite, match=f"element {at} "):
        codec.encode_by(KERNELS, x, residual, 1.0, 1, code)
    assert torch.equal(residual, before)
    assert (code == 170).all()


@pytest.mark.parametrize("name", CODECS)
def test_codes_of_many_ranks_add_up_as_one_after_the_other(name: str) -> None:
    codec, numel = CODECS[name], 2500
    codes = torch.empty(3, codec.size(numel), dtype=torch.uint8)
    for rank, code in enumerate(codes):
        codec.encode(vector("normal", numel, rank), None, 1.0, rank, code)
    together, apart = torch.ones(2, numel)
    codec.add_by(KERNELS, codes, together)
    for code in codes:
        codec.add(code, apart)
    assert same_bits(together, apart)


@pytest.mark.parametrize("damage", [(0, 99), (3, 255), (8, 200)], ids=["count", "negative count", "offset"])
def test_damaged_indices_do_not_write_elsewhere(damage: tuple[int, int]) -> None:
    codec, total = TopK(0.1), torch.zeros(100)
    code = torch.empty(codec.size(100), dtype=torch.uint8)
    codec.encode_by(KERNELS, vector("normal", 100, 1), None, 1.0, 0, code)
    code[damage[0]] = damage[1]
    with pytest.raises(DamagedCode):
        codec.add_by(KERNELS, code[None], total)
    assert not total.any()


@pytest.mark.parametrize("name", ["int4", "topk:0.3"])
def test_the_trial_before_first_use_is_passed(name: str) -> None:
    assert usable(CODECS[name], KERNELS, torch.device("cpu"))
