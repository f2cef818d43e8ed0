"""When exchanges of divided gradients begin: in the last pass, in one order, never before a gradient is whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distroml.runtime.parallel.buckets import lay_out
from distroml.runtime.parallel.departures import Departures


class Steps:
    """Four layers of a bucket each, the last one's exchange to begin late; what began, in order, and what passed."""

    def __init__(self) -> None:
        self.layers = [nn.Linear(2, 2, bias=False) for _ in range(4)]
        named = [(f"{number}.weight", layer.weight) for number, layer in enumerate(self.layers)]
        layout = dict(enumerate(lay_out(named, 1e-6)))
        self.events: list[object] = []
        self.last = False
        self.departures = Departures(
            layout,
            named,
            self.events.append,
            late={"3.weight"},
            closing={"1.weight"},
            last=lambda: self.last,
            staged=False,
        )

    def step(self, *passes: int) -> list[object]:
        """A step of two passes that use all layers, the last one made of several that use some."""
        self.events.clear()
        self.last = False
        self.departures.open()
        self._run(range(4))
        self.last = True
        for first in passes:
            self._run(range(first, 4))
            self.events.append("ran")
        self.departures.passed()
        self.events.append("summed")
        self.departures.rest()
        return list(self.events)

    def _run(self, layers: range) -> None:
        x = torch.ones(2)
        for number in layers:
            x = self.layers[number](x)
        torch.autograd.backward(x.sum())


def test_each_begins_once_its_gradients_are_whole_and_those_before_it_have_begun() -> None:
    """Buckets are numbered from the last layer on: 0 is late, 2 is whole at the end, 1 and 3 come within the pass."""
    steps = Steps()
    assert [start.number for start in steps.departures.starts if start.late] == [2, 0]
    assert steps.step(0) == ["ran", 1, 3, 2, "summed", 0], "the first step only looks"
    assert steps.step(0) == [1, 3, 2, "ran", "summed", 0]
    assert steps.step(2) == [1, "ran", 3, 2, "summed", 0], "a pass that leaves layers out holds up what they are before"


def test_what_comes_in_parts_never_begins_early_and_is_refused_where_it_began() -> None:
    steps = Steps()
    assert steps.step(0, 2) == ["ran", "ran", 1, 3, 2, "summed", 0]
    assert steps.step(0, 2) == ["ran", "ran", 1, 3, 2, "summed", 0]
    other = Steps()
    other.step(0)
    with pytest.raises(RuntimeError, match=r"a part of the gradient of 2.weight came after it was summed"):
        other.step(2, 2)


def test_after_the_end_nobody_listens() -> None:
    steps = Steps()
    steps.step(0)
    steps.departures.close()
    assert steps.step(0) == ["ran", 1, 3, 2, "summed", 0]
