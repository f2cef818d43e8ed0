"""The trainer's parts: steps, saves, restores, reports."""

from distroml.runtime.training.types import (
    Callback,
    CheckpointsExhausted,
    FitResult,
    LossFunction,
    NonFiniteError,
    StepInfo,
    from_mean,
)

__all__ = [
    "Callback",
    "CheckpointsExhausted",
    "FitResult",
    "LossFunction",
    "NonFiniteError",
    "StepInfo",
    "from_mean",
]
