"""The random numbers of stochastic rounding: a function of seed and index, the same in every implementation."""

from __future__ import annotations

import torch

_32_BITS = 0xFFFFFFFF
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B


def mix32(x: int) -> int:
    """Permute 32 bits (lowbias32 of Wellons' hash prospector, 2018)."""
    x ^= x >> 16
    x = x * _FIRST & _32_BITS
    x ^= x >> 15
    x = x * _SECOND & _32_BITS
    return x ^ x >> 16


def fold(seed: int) -> int:
    """32 bits that depend on all 64 of `seed`."""
    return mix32(mix32(seed >> 32 & _32_BITS) ^ seed & _32_BITS)


def uniform(numel: int, seed32: int, device: torch.device) -> torch.Tensor:
    """Float32 `[numel]` in [0, 1), multiples of 2^-24. `seed32` is of 32 bits."""
    x = torch.arange(numel, dtype=torch.int64, device=device).bitwise_and_(_32_BITS).bitwise_xor_(seed32)
    x ^= x >> 16
    x = x * _FIRST & _32_BITS
    x ^= x >> 15
    x = x * _SECOND & _32_BITS  # products of more than 63 bits wrap around, and their low 32 bits are right
    x ^= x >> 16
    return (x >> 8).to(torch.float32).mul_(2.0**-24)
