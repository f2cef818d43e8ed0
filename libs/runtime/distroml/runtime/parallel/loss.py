"""What a loss function gives, and whether it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Batch = TypeVar("Batch")

LossFunction = Callable[[nn.Module, Batch], tuple[torch.Tensor, int | torch.Tensor]]
"""`(model, batch) -> (sum of losses, count of the terms summed)`."""


def check_loss(value: object) -> tuple[torch.Tensor, int | torch.Tensor]:
    """The user's loss value, or a `TypeError` that says what it must be."""
    match value:
        case (torch.Tensor() as total, (int() | torch.Tensor()) as count):
            if total.dim() != 0:
                raise TypeError(f"the loss must return a sum (a 0-dimensional tensor), got shape {tuple(total.shape)}")
            return total, count
        case _:
            raise TypeError(
                f"the loss function returned {type(value).__name__}, not (sum of losses, count): use "
                "reduction='sum' and return the number of terms beside it, or wrap a mean loss with from_mean(...)"
            )
