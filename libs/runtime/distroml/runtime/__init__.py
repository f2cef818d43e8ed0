"""What a training script imports: `Trainer`, `DataLoader`, `parallelize`, `plan`.

Names are imported on first use: `import distroml.runtime` alone does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distroml.runtime.compress.optim import DGC, OneBitAdam
    from distroml.runtime.data import DataLoader
    from distroml.runtime.elastic import PeerLost, World
    from distroml.runtime.parallel import ParallelModel, Plan, PlanRefused, parallelize, plan
    from distroml.runtime.trainer import Trainer
    from distroml.runtime.training import FitResult, NonFiniteError, StepInfo, from_mean

_WHERE = {
    "DGC": "distroml.runtime.compress.optim",
    "DataLoader": "distroml.runtime.data",
    "FitResult": "distroml.runtime.training",
    "NonFiniteError": "distroml.runtime.training",
    "OneBitAdam": "distroml.runtime.compress.optim",
    "ParallelModel": "distroml.runtime.parallel",
    "PeerLost": "distroml.runtime.elastic",
    "Plan": "distroml.runtime.parallel",
    "PlanRefused": "distroml.runtime.parallel",
    "StepInfo": "distroml.runtime.training",
    "Trainer": "distroml.runtime.trainer",
    "World": "distroml.runtime.elastic",
    "from_mean": "distroml.runtime.training",
    "parallelize": "distroml.runtime.parallel",
    "plan": "distroml.runtime.parallel",
}

__all__ = [
    "DGC",
    "DataLoader",
    "FitResult",
    "NonFiniteError",
    "OneBitAdam",
    "ParallelModel",
    "PeerLost",
    "Plan",
    "PlanRefused",
    "StepInfo",
    "Trainer",
    "World",
    "from_mean",
    "parallelize",
    "plan",
]


def __getattr__(name: str) -> object:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
