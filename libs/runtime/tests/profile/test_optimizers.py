"""What an optimizer keeps is told by one that was made, whatever its class is called."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from distroml.planner import Momenta
from distroml.runtime.compress.optim import DGC, OneBitAdam
from distroml.runtime.profile.optimizers import description_of, kind_of, momenta_of

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
        (_make(OneBitAdam, warm_up_steps=2), "adamw"),
        (_make(DGC, lr=0.1), "sgd"),
    ],
)
def test_the_states_of_an_optimizer_decide_what_it_costs(make: Make, kind: str) -> None:
    assert kind_of(make) == kind


def test_settings_tell_optimizers_apart() -> None:
    same = description_of(_make(torch.optim.AdamW, lr=1e-3))
    assert same == description_of(_make(torch.optim.AdamW, lr=1e-3))
    assert same != description_of(_make(torch.optim.AdamW, lr=1e-3, amsgrad=True))
    assert same != description_of(_make(torch.optim.SGD, lr=1e-3))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (OneBitAdam, {"warm_up_steps": 3}),
        (OneBitAdam, {"warm_up_steps": 2, "betas": (0.8, 0.99)}),
        (OneBitAdam, {"warm_up_steps": 2, "weight_decay": 0.1}),
        (DGC, {"clip": 1.0}),
        (DGC, {"warm_up_steps": 1}),
        (DGC, {"momentum": 0.8}),
        (DGC, {"nesterov": True}),
        (DGC, {"lr": 0.2}),
    ],
)
def test_so_does_whatever_changes_what_they_exchange(kind: Any, settings: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"lr": 0.1, **({"warm_up_steps": 2} if kind is OneBitAdam else {})}
    assert description_of(_make(kind, **usual)) == description_of(_make(kind, **usual))
    assert description_of(_make(kind, **usual)) != description_of(_make(kind, **{**usual, **settings}))


def test_what_is_exchanged_in_place_of_gradients_is_told() -> None:
    assert momenta_of(_make(torch.optim.AdamW), "int8") is None
    assert momenta_of(_make(OneBitAdam, warm_up_steps=2), "sign") == Momenta(first=("none",))
    warm = Momenta(kept_bytes=4, working_bytes=1, first=("topk:0.25", "topk:0.0625", "topk:0.015625"))
    assert momenta_of(_make(DGC, lr=0.1, warm_up_steps=3), "topk:0.01") == warm
    held = momenta_of(_make(DGC, lr=0.1, clip=1.0), "topk:0.01")
    assert held is not None
    assert held.waits
    with pytest.raises(ValueError, match="DGC masks"):
        momenta_of(_make(DGC, lr=0.1), "int8")
