"""Optimizers that compression changes: what they exchange in place of gradients, as pure steps on flat buffers."""

from distroml.runtime.compress.optim.dgc import DGC, MomentumCorrection, ratio_at
from distroml.runtime.compress.optim.onebit import AdamState, FrozenVariance, OneBitAdam
from distroml.runtime.compress.optim.outer import OuterNesterov, OuterState
from distroml.runtime.compress.optim.told import CompressedOptimizer

__all__ = [
    "DGC",
    "AdamState",
    "CompressedOptimizer",
    "FrozenVariance",
    "MomentumCorrection",
    "OneBitAdam",
    "OuterNesterov",
    "OuterState",
    "ratio_at",
]
