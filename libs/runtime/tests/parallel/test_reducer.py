"""What the reducer hands to an exchange: each gradient whole, or an error, also where a pass brings one in parts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils import checkpoint

from distroml.runtime.elastic import Pending
from distroml.runtime.parallel.buckets import BucketSpec, Segment
from distroml.runtime.parallel.reducer import GradientReducer
from distroml.runtime.typed import backward


class Handed:
    """An exchange that keeps what it is handed."""

    def __init__(self) -> None:
        self.flats: list[torch.Tensor] = []

    def begin(self, number: int, spec: BucketSpec, flat: torch.Tensor, unreached: Sequence[Segment] = ()) -> Pending:
        del number, spec, unreached
        self.flats.append(flat.clone())
        return Pending(None)

    def take_back(self, dropped: Collection[str]) -> None:
        del dropped


def reentrantly(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return cast("torch.Tensor", cast("Any", checkpoint).checkpoint(layer, x, use_reentrant=True))


def test_a_bucket_waits_for_all_of_its_gradients_though_one_comes_in_parts() -> None:
    torch.manual_seed(0)
    first, twice, exchange = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), Handed()
    backward(twice(twice(first(torch.ones(2)))).sum())
    expected = [(name, layer.weight.grad) for name, layer in (("first", first), ("twice", twice))]
    reducer = GradientReducer([("first", first.weight), ("twice", twice.weight)], exchange, bucket_mb=1)
    reducer.begin()
    reducer.last = True
    backward(reentrantly(twice, reentrantly(twice, first(torch.ones(2)))).sum())
    assert reducer.flush() == [True, True]
    (flat,), (spec,) = exchange.flats, reducer.layout
    for name, whole in expected:
        (segment,) = [one for one in spec.segments if one.name == name]
        assert torch.allclose(flat[segment.offset : segment.offset + segment.numel], whole.flatten())


def test_a_part_that_comes_after_the_sum_has_begun_is_an_error() -> None:
    """Added to the sum, it would be this rank's alone."""
    layer, exchange = nn.Linear(2, 2, bias=False), Handed()
    reducer = GradientReducer([("weight", layer.weight)], exchange, bucket_mb=1)
    reducer.begin()
    reducer.last = True
    twice = reentrantly(layer, reentrantly(layer, torch.ones(2, requires_grad=True)))
    with pytest.raises(RuntimeError, match=r"gradient of weight came after its bucket .* use_reentrant=False"):
        backward(twice.sum())
