"""What forward and backward passes compute in; parameters, gradients and the optimizer's state stay as they are."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from distroml.runtime.parallel.loss import LossFunction

Precision = Literal["fp32", "bf16"]


def computing_in(precision: Precision, device_type: str) -> AbstractContextManager[Any]:
    """Within it, passes compute in `precision`, where torch's autocast says so."""
    return nullcontext() if precision == "fp32" else torch.autocast(device_type, dtype=torch.bfloat16)


def loss_in(precision: Precision, device_type: str, loss: LossFunction[Any]) -> LossFunction[Any]:
    """`loss`, computing in `precision` by itself."""
    if precision == "fp32":
        return loss

    def mixed(model: nn.Module, batch: Any) -> tuple[Any, Any]:
        with computing_in(precision, device_type):
            return loss(model, batch)

    return mixed
