"""Random numbers of exchanges: the same for the same place and time, on every device and at every restart."""

from __future__ import annotations

import hashlib
import struct

import torch

from distroml.runtime.compress.scheme import Turn

_LOW = 0xFFFFFFFF


def seed_of(turn: Turn, *place: int) -> int:
    """64 bits that depend on the job, step and bucket of `turn` and on `place`, and not on the rank."""
    words = (turn.seed & (1 << 64) - 1, turn.step, turn.bucket, *place)
    return int.from_bytes(hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=8).digest(), "little")


def hashed(count: int, seed: int, device: torch.device) -> torch.Tensor:
    """`count` integers below 2^32 as int64: element i is lowbias32 (Wellons, 2018) of i and the folded seed."""
    x = torch.arange(count, dtype=torch.int64, device=device)
    x = (x ^ ((seed ^ seed >> 32) & _LOW)) & _LOW
    # Products wrap at 64 bits; their lower 32 are right all the same.
    x = ((x ^ x >> 16) * 0x7FEB352D) & _LOW
    x = ((x ^ x >> 15) * 0x846CA68B) & _LOW
    return x ^ x >> 16


def uniform(count: int, seed: int, device: torch.device) -> torch.Tensor:
    """`count` float32 numbers in [-1, 1), the same bits on every device."""
    return (hashed(count, seed, device) >> 8).to(torch.float32) * 2.0**-23 - 1.0
