"""When a pass over a whole model enters and leaves its blocks, sorted into seconds of each unit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from distroml.planner import ModelProfile
from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.typed import backward


class Seconds(NamedTuple):
    """Of one forward and one backward pass."""

    forward: float
    backward: float

    @classmethod
    def median(cls, several: Iterable[Seconds]) -> Seconds:
        """Of each direction by itself."""
        kept = list(several)
        return cls(median([one.forward for one in kept]), median([one.backward for one in kept]))

    def over(self, other: Seconds) -> Seconds:
        """How many times as long as `other`."""
        return Seconds(self.forward / other.forward, self.backward / other.backward)

    def times(self, factor: Seconds) -> Seconds:
        """`factor` times as long."""
        return Seconds(self.forward * factor.forward, self.backward * factor.backward)


class Marks:
    """Hooks at the doors of a model's blocks, in both directions; gone at the end of the context."""

    def __init__(self, model: nn.Module, profile: ModelProfile) -> None:
        self._model = model
        self._shapes = [unit.shape for unit in profile.units]
        self._names = [unit.name for unit in profile.units]
        self._blocks = [number for number, unit in enumerate(profile.units) if unit.kind == "block"]
        self._kept: dict[str, list[Seconds]] = {}
        self._marks: dict[tuple[str, int], float] = {}
        self._handles: list[Any] = []
        self._device = torch.device("cpu")

    def __enter__(self) -> Marks:
        for number in self._blocks:
            block = self._model.get_submodule(self._names[number])
            self._handles.append(block.register_forward_pre_hook(self._enters(number)))
            self._handles.append(block.register_forward_hook(self._leaves(number)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, passes: Callable[[], torch.Tensor], device: torch.device, *, keep: bool) -> None:
        """One forward pass, which gives the loss, and one backward pass."""
        self._marks, self._device = {}, device
        started = now(device)
        total = passes()
        middle = now(device)
        backward(total)
        ended = now(device)
        if keep:
            for number, seconds in self._sorted(started, middle, ended).items():
                self._kept.setdefault(self._shapes[number], []).append(seconds)

    def medians(self) -> dict[str, Seconds]:
        """By shape."""
        return {shape: Seconds.median(several) for shape, several in self._kept.items()}

    def _mark(self, what: str, number: int) -> None:
        self._marks[what, number] = now(self._device)

    def _enters(self, number: int) -> Callable[..., None]:
        def entered(*_: Any) -> None:
            self._mark("enter", number)

        return entered

    def _leaves(self, number: int) -> Callable[..., None]:
        def left(block: nn.Module, args: Any, result: Any) -> None:
            self._mark("leave", number)
            tensors = [one for one in trees.leaves_of(result) if isinstance(one, torch.Tensor) and one.requires_grad]
            if tensors:
                # The gradient of a block's result is there when all that runs after the block has been gone through.
                cast("Any", tensors[0]).register_hook(self._arrives(number))

        return left

    def _arrives(self, number: int) -> Callable[[torch.Tensor], None]:
        def arrived(_: torch.Tensor) -> None:
            self._mark("back", number)

        return arrived

    def _sorted(self, started: float, middle: float, ended: float) -> dict[int, Seconds]:
        """Seconds by the number of the unit."""
        if not self._blocks:
            return {number: Seconds(middle - started, ended - middle) for number in range(len(self._shapes))}
        first, last = self._blocks[0], self._blocks[-1]
        found: dict[int, Seconds] = {}
        for number in self._blocks:
            # Backwards from its own result's gradient to that of the block before, which is its input's.
            until = self._marks.get(("back", number - 1), ended) if number > first else ended
            backward_s = max(0.0, until - self._marks.get(("back", number), until))
            found[number] = Seconds(self._marks["leave", number] - self._marks["enter", number], backward_s)
        before_s = self._marks["enter", first] - started
        after = Seconds(
            middle - started - before_s - sum(one.forward for one in found.values()),
            self._marks.get(("back", last), ended) - middle,
        )
        # What runs before the blocks is gone through after the first one, whose own time is known from its like.
        alike = [n for n in self._blocks[1:] if self._shapes[n] == self._shapes[first]]
        before = Seconds(before_s, 0.0)
        if first > 0 and alike:
            like_s = median([found[number].backward for number in alike])
            before = Seconds(before_s, max(0.0, found[first].backward - like_s))
            found[first] = Seconds(found[first].forward, found[first].backward - before.backward)
        for number in range(len(self._shapes)):
            found.setdefault(number, after if number > last else before)
        return found


def now(device: torch.device) -> float:
    """The clock once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def median(values: Sequence[float]) -> float:
    """The middle one, of two the larger."""
    return sorted(values)[len(values) // 2]
