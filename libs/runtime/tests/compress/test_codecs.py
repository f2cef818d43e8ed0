"""Codecs: the kernels give the bits that the definition in torch says, and residuals keep what a code loses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from distroml.runtime.compress.codecs import (
    BF16,
    FLOAT32,
    INT4,
    INT8,
    SIGN,
    CodecError,
    DamagedCode,
    NonFinite,
    TopK,
    add_all,
    first_nonfinite,
    oracle,
    sum_all,
)
from distroml.runtime.compress.codecs.noise import fold, mix32, uniform
from distroml.runtime.compress.native import Kernels, kernels

CODECS = {
    codec.name: codec
    for codec in (INT8, INT4, SIGN, BF16, TopK(0.01), TopK(0.3), TopK(1.0), TopK(0.05, INT8), TopK(0.05, BF16))
}
KINDS = ("normal", "ties", "zeros", "denormal", "huge", "mixed", "one large")


@pytest.fixture(params=["generic", "avx2", "avx512"], scope="module")
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each level of kernels that this processor has; the others fall back to the one below, as they do for users."""
    loaded = kernels()
    assert isinstance(loaded, Kernels), "the kernels are not built: make setup"
    loaded.at_most(["generic", "avx2", "avx512"].index(request.param))
    yield request.param
    loaded.at_most(2)


def vector(kind: str, numel: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(numel, generator=generator)
    match kind:
        case "ties":
            return x.sign().round()
        case "zeros":
            return torch.zeros(numel)
        case "denormal":
            return x * 1e-42
        case "huge":
            return x.clamp(-1, 1) * torch.finfo(torch.float32).max
        case "mixed":
            return x * 10.0 ** torch.randint(-40, 30, (numel,), generator=generator)
        case "one large":
            x[numel // 2] = 1e6
    return x


def order_matters() -> torch.Tensor:
    """Blocks of `sign` whose mean is another for another order of its sum.

    2^64 + 2^40 lies halfway between two float32. Twice 2^11, which float64 drops where it is added alone, is more.
    """
    generator, blocks = torch.Generator().manual_seed(1), torch.zeros(16, 1024)
    for block in blocks:
        first, second = torch.randperm(1024, generator=generator)[:2].tolist()
        block[first] = block[second] = 2.0**11
    blocks[:, 0], blocks[:, 16] = 2.0**64, 2.0**40
    return blocks.view(-1)


def sizes() -> st.SearchStrategy[int]:
    edges = [1, 2, 7, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4097, 65537]
    return st.sampled_from(edges) | st.integers(1, 20_000)


def decoded(codec: object, code: torch.Tensor, numel: int) -> torch.Tensor:
    total = torch.zeros(numel)
    codec.add(code, total)
    return total


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("name", CODECS)
@given(
    numel=sizes(),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**64 - 1),
    carry=st.sampled_from([1.0, 4096.0, 3.0, 1e-3]),
    feedback=st.booleans(),
)
@example(numel=17, kind="denormal", seed=952, carry=1.0, feedback=False)  # a negative zero keeps its sign
def test_a_kernel_gives_the_bits_of_the_definition(
    level: str, name: str, numel: int, kind: str, seed: int, carry: float, feedback: bool
) -> None:
    codec = CODECS[name]
    x = vector(kind, numel, seed % 1000)
    residual = vector("normal", numel, seed % 1000 + 1) * (1e-42 if kind == "denormal" else 0.3) if feedback else None
    other, before = None if residual is None else residual.clone(), x.clone()
    fast, naive = torch.empty(2, codec.size(numel), dtype=torch.uint8)
    codec.encode(x, residual, carry, seed, fast)
    oracle.encode(codec.oracle, x, other, carry, seed, naive)
    assert torch.equal(fast, naive)
    assert torch.equal(x, before)
    if residual is not None and other is not None:
        assert same_bits(residual, other)
        assert carry < 1 or residual.isfinite().all()
    total = vector("normal", numel, 5)
    expected = total + codec.oracle.decode(naive, numel)
    codec.add(fast, total)
    assert torch.equal(total, expected)
    assert total.isfinite().all()


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("carry", [1.0, 77.0])
def test_a_residual_holds_what_the_code_lost(name: str, carry: float) -> None:
    codec, numel = CODECS[name], 3001
    x, residual = vector("normal", numel, 1) * carry, vector("normal", numel, 2)
    v = x + carry * residual
    code = torch.empty(codec.size(numel), dtype=torch.uint8)
    codec.encode(x, residual, carry, 3, code)
    torch.testing.assert_close(decoded(codec, code, numel) + carry * residual, v, rtol=1e-5, atol=1e-5 * carry)


@pytest.mark.parametrize("name", CODECS)
def test_a_seed_gives_one_code_and_another_seed_another(name: str) -> None:
    codec, x = CODECS[name], vector("normal", 5000, 1)
    codes = torch.empty(3, codec.size(5000), dtype=torch.uint8)
    for code, seed in zip(codes, (9, 9, 9 + 2**32), strict=True):
        codec.encode(x, None, 1.0, seed, code)
    assert torch.equal(codes[0], codes[1])
    draws = codec in (INT8, INT4) or "int8" in name
    assert torch.equal(codes[0], codes[2]) is not draws


@pytest.mark.parametrize("codec", [INT8, INT4], ids=lambda codec: codec.name)
def test_stochastic_rounding_is_right_in_the_mean(codec: object) -> None:
    x, draws = vector("normal", 700, 1), 4000
    total, code = torch.zeros(700, dtype=torch.float64), torch.empty(codec.size(700), dtype=torch.uint8)
    for seed in range(draws):
        codec.encode(x, None, 1.0, seed, code)
        total += decoded(codec, code, 700)
    # An error is at most one quantum wide, so its mean over independent draws has a deviation of at most quantum / 2.
    quantum = x.abs().max() / codec.oracle.top
    error = (total / draws - x).abs() / (quantum / 2 / draws**0.5)
    assert error.max() < 5
    assert codec.unbiased


@pytest.mark.parametrize("codec", [SIGN, TopK(0.1), BF16], ids=lambda codec: codec.name)
def test_what_needs_a_residual_says_so(codec: object) -> None:
    assert not codec.unbiased


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 1500, 2999])
def test_what_is_not_finite_does_not_reach_the_residual(level: str, name: str, bad: float, at: int) -> None:
    codec, x, residual = CODECS[name], vector("normal", 3000, 1), vector("normal", 3000, 2)
    x[at], before = bad, residual.clone()
    code = torch.empty(codec.size(3000), dtype=torch.uint8)
    with pytest.raises(NonFinite, match=f"element {at} ") as caught:
        codec.encode(x, residual, 1.0, 1, code)
    assert caught.value.index == at == first_nonfinite(x)
    assert torch.equal(residual, before)
    with pytest.raises(NonFinite, match=f"element {at} "):
        oracle.encode(codec.oracle, x, residual, 1.0, 1, code)
    assert torch.equal(residual, before)


def test_finite_vectors_are_found_finite(level: str) -> None:
    assert first_nonfinite(vector("huge", 10_000, 1)) is None


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(CodecError, match="above 0 and at most 1"):
        TopK(ratio)


@pytest.mark.parametrize(("ratio", "numel", "kept"), [(0.07, 100, 7), (0.01, 1, 1), (0.01, 101, 2), (1, 9, 9)])
def test_the_share_is_the_written_one_rounded_up(ratio: float, numel: int, kept: int) -> None:
    assert TopK(ratio).kept(numel) == kept


def test_names_are_what_users_write() -> None:
    names = [codec.name for codec in (INT8, TopK(0.01), TopK(0.001, INT8), TopK(0.5, BF16))]
    assert names == ["int8", "topk:0.01", "topk:0.001+int8", "topk:0.5+bf16"]


CODE = torch.empty(INT8.size(10), dtype=torch.uint8)
REFUSED = {
    "int64": (torch.arange(10), None, 1.0, CODE),
    "float64": (torch.zeros(10, dtype=torch.float64), None, 1.0, CODE),
    "empty": (torch.zeros(0), None, 1.0, CODE[:0]),
    "1-D": (torch.zeros(5, 2), None, 1.0, CODE),
    "contiguous": (torch.zeros(20)[::2], None, 1.0, CODE),
    "must have 14 elements": (torch.zeros(10), None, 1.0, CODE[:-1]),
    "the residual must have 10": (torch.zeros(10), torch.zeros(9), 1.0, CODE),
    "the residual must be torch.float32": (torch.zeros(10), torch.zeros(10, dtype=torch.bfloat16), 1.0, CODE),
    "carry must be above 0": (torch.zeros(10), None, 0.0, CODE),
    "finite in float32": (torch.zeros(10), None, 1e39, CODE),
}


@pytest.mark.parametrize("why", REFUSED)
def test_bad_arguments_are_refused(why: str) -> None:
    x, residual, carry, code = REFUSED[why]
    with pytest.raises(CodecError, match=why):
        INT8.encode(x, residual, carry, 0, code)


@pytest.mark.parametrize("name", ["int8", "topk:0.3"])
def test_a_code_of_another_size_is_refused(name: str) -> None:
    codec = CODECS[name]
    with pytest.raises(CodecError, match="the code must have"):
        codec.add(torch.zeros(codec.size(100), dtype=torch.uint8), torch.zeros(200))


@pytest.mark.parametrize("damage", [(0, 99), (8, 200)], ids=["count", "offset"])
def test_damaged_indices_do_not_write_elsewhere(damage: tuple[int, int]) -> None:
    codec, x, total = TopK(0.1), vector("normal", 100, 1), torch.zeros(100)
    code = torch.empty(codec.size(100), dtype=torch.uint8)
    codec.encode(x, None, 1.0, 0, code)
    code[damage[0]] = damage[1]
    with pytest.raises(DamagedCode):
        codec.add(code, total)
    with pytest.raises(DamagedCode):
        codec.oracle.decode(code, 100)
    assert not total.any()


@pytest.mark.parametrize("name", CODECS)
def test_codes_of_many_ranks_add_up_as_one_after_the_other(level: str, name: str) -> None:
    codec, numel = CODECS[name], 2500
    codes = torch.empty(3, codec.size(numel), dtype=torch.uint8)
    for rank, code in enumerate(codes):
        codec.encode(vector("normal", numel, rank), None, 1.0, rank, code)
    together, apart = torch.ones(2, numel)
    add_all(codec, codes, together)
    for code in codes:
        codec.add(code, apart)
    assert same_bits(together, apart)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("numel", [1, 2500])
def test_a_sum_of_codes_does_not_hang_on_what_its_place_held_nor_on_what_lies_between_them(
    level: str, name: str, numel: int
) -> None:
    """Codes of several vectors lie in one message, row by row; zeros keep their sign as a sum with zero has it."""
    codec = CODECS[name]
    size = codec.size(numel)
    message = torch.full((3, -(-size // 8) * 8 + 16), 255, dtype=torch.uint8)
    codes = message[:, 8 : 8 + size]
    for rank, code in enumerate(codes):
        codec.encode(-vector("normal", numel, rank).relu(), None, 1.0, rank, code)
    total, wanted = torch.full((numel,), math.nan), torch.zeros(numel)
    sum_all(codec, codes, total)
    for code in codes:
        codec.add(code.clone(), wanted)
    assert same_bits(total, wanted)


def test_top_k_of_sorted_and_of_periodic_vectors_is_exact(level: str) -> None:
    """Where a sample misleads, and where every element is greater than those before it."""
    numel = 300_000
    for x in (torch.arange(1.0, numel + 1), (torch.arange(numel) % 997 == 3).float(), -torch.arange(1.0, numel + 1)):
        fast, naive = torch.empty(2, TopK(0.01).size(numel), dtype=torch.uint8)
        TopK(0.01).encode(x, None, 1.0, 1, fast)
        oracle.encode(TopK(0.01).oracle, x, None, 1.0, 1, naive)
        assert torch.equal(fast, naive)


def test_a_block_is_summed_in_the_order_of_the_definition(level: str) -> None:
    x = order_matters()
    fast, naive = torch.empty(2, SIGN.size(x.numel()), dtype=torch.uint8)
    SIGN.encode(x, None, 1.0, 0, fast)
    oracle.encode(SIGN.oracle, x, None, 1.0, 0, naive)
    assert torch.equal(fast, naive)
    assert len(naive[: 4 * 16].view(torch.float32).unique()) == 2


def test_random_numbers_are_uniform_and_of_every_bit_of_the_seed() -> None:
    u = uniform(100_000, fold(1), torch.device("cpu"))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.005
    assert abs(u.var() - 1 / 12) < 0.002
    assert (u * 2**24).frac().abs().max() == 0
    assert int(u[7] * 2**24) == mix32(7 ^ fold(1)) >> 8
    assert len({fold(1 << bit) for bit in range(64)} | {fold(0)}) == 65


def test_plain_values_lose_nothing() -> None:
    x, code = vector("mixed", 100, 1).clamp(-1e37, 1e37), torch.empty(400, dtype=torch.uint8)
    FLOAT32.encode(x, None, 1.0, 0, code)
    assert torch.equal(decoded(FLOAT32, code, 100), x)
