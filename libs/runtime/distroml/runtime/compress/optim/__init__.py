"""Optimizers that compression changes: what they exchange in place of gradients, as pure steps on flat buffers."""

from distroml.runtime.compress.optim.dgc import MomentumCorrection, ratio_at
from distroml.runtime.compress.optim.onebit import AdamState, OneBitAdam
from distroml.runtime.compress.optim.outer import OuterNesterov, OuterState

__all__ = ["AdamState", "MomentumCorrection", "OneBitAdam", "OuterNesterov", "OuterState", "ratio_at"]
