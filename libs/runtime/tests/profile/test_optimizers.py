"""What an optimizer keeps is told by one that was made, whatever its class is called."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from distroml.runtime.profile.optimizers import description_of, kind_of

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def _make(kind: Any, **settings: Any) -> Make:
    return lambda parameters: kind(parameters, **settings)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_make(torch.optim.SGD, lr=0.1), "sgd"),
        (_make(torch.optim.SGD, lr=0.1, momentum=0.9), "momentum"),
        (_make(torch.optim.Adagrad), "momentum"),
        (_make(torch.optim.Adam), "adamw"),
        (_make(torch.optim.AdamW), "adamw"),
        (_make(torch.optim.AdamW, amsgrad=True), "adamw"),
    ],
)
def test_the_states_of_an_optimizer_decide_what_it_costs(make: Make, kind: str) -> None:
    assert kind_of(make) == kind


def test_settings_tell_optimizers_apart() -> None:
    same = description_of(_make(torch.optim.AdamW, lr=1e-3))
    assert same == description_of(_make(torch.optim.AdamW, lr=1e-3))
    assert same != description_of(_make(torch.optim.AdamW, lr=1e-3, amsgrad=True))
    assert same != description_of(_make(torch.optim.SGD, lr=1e-3))
