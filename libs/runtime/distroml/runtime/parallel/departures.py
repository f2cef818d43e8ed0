"""When the exchanges of divided gradients begin: each once its gradients are whole, in one order on all replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from distroml.runtime.parallel.buckets import BucketSpec, Start
from distroml.runtime.typed import on_gradient


class Departures:
    """Begins a step's exchanges: `open()`, backward passes, `passed()`, `rest()`.

    In the last backward pass a parameter's gradient is whole once something was accumulated into it; a bucket begins
    when all of its gradients are and the buckets before it have begun. In a pipeline gradients are whole stage by
    stage (`stage_passed`). What is summed further after the passes waits for `rest()`.

    Sharding may bring a gradient in parts, where a step runs a unit twice. The first step shows it: no bucket begins
    early in that one, and those in which it was seen never do.
    """

    def __init__(
        self,
        layout: Mapping[int, BucketSpec],
        parameters: Sequence[tuple[str, nn.Parameter]],
        begin: Callable[[int], None],
        *,
        late: Collection[str],
        closing: Collection[str],
        last: Callable[[], bool],
        staged: bool,
    ) -> None:
        """Listen to the gradients of `parameters`.

        Args:
            layout: buckets by number, whose segments' indices are places in `parameters`.
            parameters: of this rank, in the model's order.
            begin: starts the exchange of a bucket.
            late: names of parameters whose gradients are not whole after the passes.
            closing: names of those whose gradients are whole at the very end of the passes.
            last: tells whether the pass that runs is the step's last one.
            staged: whether the passes are a pipeline's.
        """

        def of(names: Collection[str]) -> set[int]:
            return {number for number, spec in layout.items() if any(one.name in names for one in spec.segments)}

        self._layout = layout
        self._parameters = parameters
        self._begin = begin
        self._late = sorted(of(late))
        self._closing = of(closing)
        self._last = last
        self._staged = staged
        # A pass comes to a bucket's first parameter last.
        self._early = sorted(
            layout.keys() - self._late,
            key=lambda number: (number in self._closing, -min(one.index for one in layout[number].segments)),
        )
        self._home = {segment.index: number for number in self._early for segment in layout[number].segments}
        self._place = {id(parameters[index][1]): index for index in self._home}
        self._handles: list[RemovableHandle] = []
        if not staged:
            self._handles = [on_gradient(parameters[index][1], self._came) for index in self._home]
        self._known = staged
        self._in_parts: set[int] = set()
        self._times: Counter[int] = Counter()
        self._missing: dict[int, int] = {}
        self._next = 0
        self.open()

    @property
    def starts(self) -> list[Start]:
        """See `Gradients`. A stage's last pass ends when its rank has done everything: that is no time to count on."""
        late = {*self._late, *self._closing}
        return [
            Start(number, self._layout[number], late=self._staged or number in late)
            for number in (*self._early, *self._late)
        ]

    def open(self) -> None:
        """A new step: nothing is there yet."""
        self._times.clear()
        self._missing = {number: len(self._layout[number].segments) for number in self._early}
        self._next = 0

    def _came(self, parameter: torch.Tensor) -> None:
        if self._last():
            self._note(self._place[id(parameter)])

    def stage_passed(self, parameters: Iterable[nn.Parameter]) -> None:
        """All backward passes of the stage with these parameters are done."""
        for place in (self._place.get(id(parameter)) for parameter in parameters):
            if place is not None and not self._times[place]:
                self._note(place)

    def _note(self, place: int) -> None:
        number = self._home[place]
        self._times[place] += 1
        if self._times[place] > 1:
            if number in self._early[: self._next]:
                raise RuntimeError(
                    f"a part of the gradient of {self._parameters[place][0]} came after it was summed along "
                    "dp_replicate: this step's last pass runs the module more often than earlier steps' did; run it "
                    "equally often in every step, or use a plan with dp_replicate=1"
                )
            self._in_parts.add(number)
            return
        self._missing[number] -= 1
        while self._known and self._next < len(self._early) and self._whole(self._early[self._next]):
            self._depart()

    def _whole(self, number: int) -> bool:
        return self._missing[number] == 0 and number not in self._in_parts

    def _depart(self) -> None:
        self._next += 1
        self._begin(self._early[self._next - 1])

    def passed(self) -> None:
        """All backward passes are done: begin what did not begin within them, but for what is late."""
        while self._next < len(self._early):
            self._depart()
        self._known = self._known or bool(self._times)

    def rest(self) -> None:
        """All gradients are whole: begin what is late."""
        for number in self._late:
            self._begin(number)

    def close(self) -> None:
        """Listen no longer."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
