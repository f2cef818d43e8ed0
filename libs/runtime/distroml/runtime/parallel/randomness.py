"""Random numbers that depend on seed, step and place only, so that no generator's state needs to be saved."""

from __future__ import annotations

import random

import numpy as np

from distroml.runtime.typed import seed_generators

_MASK = (1 << 63) - 1
_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F)


def seed_for(*numbers: int) -> int:
    """A well-scattered 63-bit number of at most five (splitmix64's finaliser: Steele et al., OOPSLA 2014)."""
    value = (sum(number * odd for number, odd in zip(numbers, _ODD, strict=False)) + 1) & ((1 << 64) - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return (value ^ (value >> 31)) & _MASK


def seed_pass(seed: int, step: int, dp_rank: int, microbatch: int, stage: int) -> None:
    """Seed the generators of torch, numpy and the standard library for one forward pass.

    Ranks that differ along tp only get the same numbers: what they hold as copies must stay equal.
    """
    value = seed_for(seed, step, dp_rank, microbatch, stage)
    seed_generators(value)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
