"""The kernels that Triton compiles for a GPU: the arithmetic of `codecs/oracle.py`, each operation rounded by itself.

They must be launched without fused multiply-add (`launching.py` sees to it), and divide by `div_rn`: Triton's `/` of
float32 is an approximation. Codes are read and written by bytes, for a code may begin anywhere in a buffer; without its
scales, one has `size` bytes. Offsets are of 64 bits. A program works on BLOCKS blocks of SIZE elements, or on TILE
elements; capitals are known when it compiles.

This is the one file that type checkers see little of: Triton's language is Python to the eye only.
"""

# pyright: basic
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportOptionalOperand=false

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import triton
import triton.language as tl

_LIMIT = tl.constexpr(2.0**127)  # of the oracle
_FIRST, _SECOND = tl.constexpr(0x7FEB352D), tl.constexpr(0x846CA68B)  # of lowbias32
_MAGNITUDE, _INFINITY = tl.constexpr(0x7FFFFFFF), tl.constexpr(0x7F800000)
_STEP = tl.constexpr(2.0**-24)


class Kernel(Protocol):
    """A kernel that waits for its grid, and then for its arguments."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., object]:
        """What launches that many programs."""
        ...


def kernel(function: Callable[..., None]) -> Kernel:
    """To be compiled at its first launch; not again for another seed."""
    return triton.jit(function, do_not_specialize=["seed"])


@triton.jit
def _fed(vector, residual, carry, at, inside):
    """What is coded, `vector + carry * residual` held at the limit; 0 outside."""
    v = tl.load(vector + at, mask=inside, other=0.0)
    if residual is not None:
        v += carry * tl.load(residual + at, mask=inside, other=0.0)
    return tl.minimum(tl.maximum(v, -_LIMIT), _LIMIT)


@triton.jit
def _uniform(at, seed):
    """`noise.uniform`."""
    x = at.to(tl.uint32) ^ seed.to(tl.uint32, bitcast=True)
    x ^= x >> 16
    x *= _FIRST
    x ^= x >> 15
    x *= _SECOND
    x ^= x >> 16
    return (x >> 8).to(tl.float32) * _STEP


@triton.jit
def _put(scales, block, scale, there):
    """Write float32 `scale` of each `block` by bytes, little endian."""
    byte = tl.arange(0, 4)[None, :]
    bits = scale.to(tl.uint32, bitcast=True)[:, None] >> (8 * byte)
    tl.store(scales + 4 * block[:, None] + byte, (bits & 255).to(tl.uint8), mask=there[:, None])


@triton.jit
def _get(scales, block, there):
    """Read what `_put` wrote."""
    byte = tl.arange(0, 4)[None, :]
    bits = tl.load(scales + 4 * block[:, None] + byte, mask=there[:, None], other=0).to(tl.uint32) << (8 * byte)
    return tl.sum(bits, axis=1).to(tl.float32, bitcast=True)


@kernel
def first_nonfinite(vector, first, n, TILE: tl.constexpr):
    """`first`, int64, which must hold n, becomes the index of the first NaN or infinity, if there is one."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    bits = tl.load(vector + at, mask=at < n, other=0.0).to(tl.int32, bitcast=True)
    found = tl.min(tl.where((bits & _MAGNITUDE) >= _INFINITY, at, n), axis=0)
    if found < n:
        tl.atomic_min(first, found)


@kernel
def encode_quantised(
    first, vector, residual, carry, seed, scales, codes, size, n,
    TOP: tl.constexpr, NIBBLES: tl.constexpr, SIZE: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """`Quantised.code` and the new residual; nothing where `first` says that the vector is not finite."""
    if tl.load(first) < n:
        return
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    at = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    inside = at < n
    v = _fed(vector, residual, carry, at, inside)
    scale = tl.div_rn(tl.max(tl.abs(v), axis=1), TOP * 1.0)
    _put(scales, block, scale, block * SIZE < n)
    drawn = tl.div_rn(v, tl.where(scale == 0, 1.0, scale)[:, None]) + _uniform(at, seed)
    code = drawn.to(tl.int32)
    code -= (code.to(tl.float32) > drawn).to(tl.int32)  # tl.floor takes denormal numbers for zero
    code = tl.where(scale[:, None] == 0, 0, tl.minimum(tl.maximum(code, -TOP), TOP))
    if NIBBLES:
        even, odd = tl.split(tl.reshape(code + 8, (BLOCKS, SIZE // 2, 2)))
        pair = block[:, None] * (SIZE // 2) + tl.arange(0, SIZE // 2)[None, :]
        tl.store(codes + pair, (even | (odd << 4)).to(tl.uint8), mask=pair < size)
    else:
        tl.store(codes + at, (code & 255).to(tl.uint8), mask=inside)
    if residual is not None:
        tl.store(residual + at, tl.div_rn(v - code.to(tl.float32) * scale[:, None], carry), mask=inside)


@kernel
def add_quantised(
    scales, codes, size, stride, count, total, n,
    NIBBLES: tl.constexpr, SIZE: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Add `Quantised.decode` of `count` codes, each `stride` bytes after the one before, in their order."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    at = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    inside = at < n
    summed = tl.load(total + at, mask=inside, other=0.0)
    for _ in range(count):
        if NIBBLES:
            pair = block[:, None] * (SIZE // 2) + tl.arange(0, SIZE // 2)[None, :]
            both = tl.load(codes + pair, mask=pair < size, other=0).to(tl.int32)
            code = tl.reshape(tl.join(both & 15, both >> 4), (BLOCKS, SIZE)) - 8
        else:
            code = tl.load(codes + at, mask=inside, other=0).to(tl.int8, bitcast=True)
        summed += code.to(tl.float32) * _get(scales, block, block * SIZE < n)[:, None]
        scales += stride
        codes += stride
    tl.store(total + at, summed, mask=inside)


@kernel
def encode_sign(
    first, vector, residual, carry, scales, codes, size, n,
    SIZE: tl.constexpr, BLOCKS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """`Signs.code` and the new residual, PART of each block at a time; nothing where the vector is not finite."""
    if tl.load(first) < n:
        return
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    start = block[:, None] * SIZE
    # The oracle's 16 lanes, row after row, then halves: Triton's own sum of a block may take any order.
    lanes = tl.zeros((BLOCKS, 16), tl.float64)
    for row in range(0, SIZE, 16):
        at = start + row + tl.arange(0, 16)[None, :]
        lanes += tl.abs(_fed(vector, residual, carry, at, at < n)).to(tl.float64)
    lanes = tl.sum(tl.reshape(lanes, (BLOCKS, 2, 8)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (BLOCKS, 2, 4)), axis=1)
    lanes = tl.sum(tl.reshape(lanes, (BLOCKS, 2, 2)), axis=1)
    there = tl.minimum(tl.maximum(n - block * SIZE, 1), SIZE)
    scale = (tl.sum(lanes, axis=1) / there.to(tl.float64)).to(tl.float32)
    _put(scales, block, scale, block * SIZE < n)
    tl.debug_barrier()  # the residual is read to the end before any thread writes it
    for column in range(0, SIZE, PART):
        at = start + column + tl.arange(0, PART)[None, :]
        inside = at < n
        v = _fed(vector, residual, carry, at, inside)
        bits = tl.reshape(((v >= 0) & inside).to(tl.int32), (BLOCKS, PART // 8, 8)) << tl.arange(0, 8)[None, None, :]
        byte = block[:, None] * (SIZE // 8) + column // 8 + tl.arange(0, PART // 8)[None, :]
        tl.store(codes + byte, tl.sum(bits, axis=2).to(tl.uint8), mask=byte < size)
        if residual is not None:
            told = tl.where(v >= 0, scale[:, None], -scale[:, None])
            tl.store(residual + at, tl.div_rn(v - told, carry), mask=inside)


@kernel
def add_sign(scales, codes, size, stride, count, total, n, SIZE: tl.constexpr, BLOCKS: tl.constexpr):
    """Add `Signs.decode` of `count` codes, as `add_quantised`."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    at = block[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    byte = block[:, None] * (SIZE // 8) + tl.arange(0, SIZE // 8)[None, :]
    inside = at < n
    summed = tl.load(total + at, mask=inside, other=0.0)
    for _ in range(count):
        packed = tl.load(codes + byte, mask=byte < size, other=0).to(tl.int32)
        bits = tl.reshape((packed[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1, (BLOCKS, SIZE))
        scale = _get(scales, block, block * SIZE < n)[:, None]
        summed += tl.where(bits != 0, scale, -scale)
        scales += stride
        codes += stride
    tl.store(total + at, summed, mask=inside)


@kernel
def encode_bf16(first, vector, residual, carry, codes, size, n, TILE: tl.constexpr):
    """`Cast.code` to bfloat16 and the new residual; nothing where the vector is not finite."""
    if tl.load(first) < n:
        return
    start = tl.program_id(0).to(tl.int64) * TILE
    at = start + tl.arange(0, TILE)
    v = _fed(vector, residual, carry, at, at < n)
    bits = v.to(tl.uint32, bitcast=True)
    half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to the nearest, of two equally near ones the even
    byte = 2 * start + tl.arange(0, 2 * TILE)
    packed = tl.reshape(tl.join(half & 255, half >> 8), (2 * TILE,)).to(tl.uint8)
    tl.store(codes + byte, packed, mask=byte < size)
    if residual is not None:
        told = (half << 16).to(tl.float32, bitcast=True)
        tl.store(residual + at, tl.div_rn(v - told, carry), mask=at < n)


@kernel
def add_bf16(codes, size, stride, count, total, n, TILE: tl.constexpr):
    """Add `Cast.decode` of `count` codes, as `add_quantised`."""
    start = tl.program_id(0).to(tl.int64) * TILE
    at = start + tl.arange(0, TILE)
    byte = 2 * start + tl.arange(0, 2 * TILE)
    summed = tl.load(total + at, mask=at < n, other=0.0)
    for _ in range(count):
        packed = tl.load(codes + byte, mask=byte < size, other=0).to(tl.uint32)
        low, high = tl.split(tl.reshape(packed, (TILE, 2)))
        summed += ((low << 16) | (high << 24)).to(tl.float32, bitcast=True)
        codes += stride
    tl.store(total + at, summed, mask=at < n)


@kernel
def topk_keys(vector, residual, carry, keys, n, TILE: tl.constexpr):
    """The bits of each magnitude, int32: they are in the order of the magnitudes, whatever the vector holds."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    v = _fed(vector, residual, carry, at, at < n)
    tl.store(keys + at, v.to(tl.int32, bitcast=True) & _MAGNITUDE, mask=at < n)


@kernel
def topk_count(keys, threshold, greater, equal, n, TILE: tl.constexpr):
    """How many keys of each tile are above the threshold, and how many are it; int64."""
    tile = tl.program_id(0).to(tl.int64)
    at = tile * TILE + tl.arange(0, TILE)
    key, least = tl.load(keys + at, mask=at < n, other=-1), tl.load(threshold)
    tl.store(greater + tile, tl.sum((key > least).to(tl.int32), axis=0).to(tl.int64))
    tl.store(equal + tile, tl.sum((key == least).to(tl.int32), axis=0).to(tl.int64))


@kernel
def topk_place(
    keys, threshold, greater, equal, room, vector, residual, carry, offsets, indices, values, n,
    TILE: tl.constexpr,
):  # fmt: skip
    """Write each kept entry where those before it end: all above the threshold, and the first `room` of those at it.

    `greater` and `equal` say how many there are in the tiles before.
    """
    tile = tl.program_id(0).to(tl.int64)
    at = tile * TILE + tl.arange(0, TILE)
    key, least, space = tl.load(keys + at, mask=at < n, other=-1), tl.load(threshold), tl.load(room)
    above, level = (key > least).to(tl.int32), (key == least).to(tl.int32)
    ties = tl.load(equal + tile) + tl.cumsum(level, axis=0) - level
    kept = (above != 0) | ((level != 0) & (ties < space))
    place = tl.load(greater + tile) + tl.cumsum(above, axis=0) - above + tl.minimum(ties, space)
    tl.store(offsets + 2 * place, (at & 255).to(tl.uint8), mask=kept)
    tl.store(offsets + 2 * place + 1, ((at >> 8) & 255).to(tl.uint8), mask=kept)
    tl.store(indices + place, at.to(tl.int32), mask=kept)
    tl.store(values + place, _fed(vector, residual, carry, at, kept), mask=kept)


@kernel
def settle(vector, residual, carry, n, TILE: tl.constexpr):
    """The residual of elements that were not sent: v / carry."""
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    v = _fed(vector, residual, carry, at, at < n)
    tl.store(residual + at, tl.div_rn(v, carry), mask=at < n)


@kernel
def settle_kept(residual, carry, indices, values, decoded, k, TILE: tl.constexpr):
    """The residual of those that were: (v - decoded) / carry."""
    entry = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = entry < k
    at = tl.load(indices + entry, mask=inside, other=0).to(tl.uint32, bitcast=True).to(tl.int64)
    lost = tl.load(values + entry, mask=inside, other=0.0) - tl.load(decoded + entry, mask=inside, other=0.0)
    tl.store(residual + at, tl.div_rn(lost, carry), mask=inside)
