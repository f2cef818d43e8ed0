"""Random numbers that depend on (seed, step, rank) only, so that no generator's state needs to be saved."""

from __future__ import annotations

import random

import numpy as np

from distroml.runtime.typed import seed_generators

_MASK = (1 << 63) - 1


def seed_for(seed: int, step: int, rank: int) -> int:
    """A well-scattered 63-bit number of the three."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + 1) & ((1 << 64) - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return (value ^ (value >> 31)) & _MASK


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the generators of torch, numpy and the standard library for one step of one rank."""
    value = seed_for(seed, step, rank)
    seed_generators(value)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
