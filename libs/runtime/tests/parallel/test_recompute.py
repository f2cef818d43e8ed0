"""A model that outlives a generation is recomputed as the next plan says, not as both do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distroml.planner.plan import Recompute
from distroml.runtime.parallel.recompute import keep_all, recompute
from distroml.runtime.typed import backward


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.layer(x).relu()


@pytest.mark.parametrize(
    ("kinds", "passes"), [(("full",), 2), (("full", "full"), 2), (("full", "selective", "none"), 1)]
)
def test_generations_do_not_add_up(kinds: tuple[Recompute, ...], passes: int) -> None:
    model = nn.Sequential(Counting())
    for kind in kinds:
        keep_all(model)
        recompute(list(model), kind)
    backward(model(torch.ones(2, requires_grad=True)).sum())
    assert model[0].passes == passes
