"""What the model's units really take on this machine, all ranks at once: one block of each shape, forward and back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from distroml.planner import Device, MeasuredUnit, ModelProfile
from distroml.runtime.elastic import Collectives
from distroml.runtime.parallel.pipeline import trees

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
Loss = Callable[[nn.Module, Any], tuple[torch.Tensor, Any]]

_REPEATS = 3
_MATMUL = 512


@dataclass(frozen=True, slots=True)
class Timed:
    """Measured times, and the machine as they show it. Equal on every rank."""

    units: tuple[MeasuredUnit, ...]
    device: Device


def time_units(
    model: nn.Module,
    profile: ModelProfile,
    loss: Loss,
    sample: Any,
    collectives: Collectives,
    optimizer: MakeOptimizer,
    *,
    microbatches: Sequence[int],
    degrees: Sequence[int],
    budget_s: float = 2.0,
) -> Timed:
    """Time the model's passes and its optimizer. Collective: ranks of one machine slow one another down here, too.

    Args:
        model: real, as it will be trained; its parameters are unchanged.
        profile: of it.
        loss: as in training.
        sample: a batch whose samples make the microbatches.
        collectives: of the world.
        optimizer: as in training.
        microbatches: sizes to time; those between are interpolated.
        degrees: of tp.
        budget_s: about how long it may take.
    """
    device = collectives.world.device
    units: list[MeasuredUnit] = []
    deadline = time.monotonic() + budget_s
    for size in microbatches:
        batch = _first(sample, size)
        times = _UnitTimes(model, profile)
        with times:
            for repeat in range(_REPEATS + 1):
                collectives.gather(None)
                times.run(lambda batch=batch: loss(model, batch)[0], keep=repeat > 0)
        medians = _largest(collectives.gather(times.medians()))
        for unit in profile.units:
            forward_s, backward_s = medians[unit.shape]
            for tp in degrees:
                share = 1.0 - unit.split + unit.split / tp
                units.append(
                    MeasuredUnit(
                        shape=unit.shape,
                        microbatch=size,
                        tp=tp,
                        forward_s=forward_s * share,
                        backward_s=backward_s * share,
                    )
                )
        if any(collectives.gather(time.monotonic() > deadline)):
            break
    for parameter in model.parameters():
        parameter.grad = None
    traffic = min(collectives.gather(_optimizer_traffic(model, optimizer)))
    rate = min(collectives.gather(_matmul_rate(device)))
    memory = min(collectives.gather(_memory_bytes(device, collectives.world.world_size)))
    return Timed(
        tuple({(unit.shape, unit.microbatch, unit.tp): unit for unit in units}.values()),
        Device(
            name=device.type,
            flops={"fp32": rate},
            memory_bytes=memory,
            memory_bytes_per_s=traffic,
            matmul_efficiency=1.0,
            memory_efficiency=1.0,
            overlap=0.9 if device.type == "cuda" else CPU_OVERLAP,
        ),
    )


CPU_OVERLAP = 0.3
"""Share of an exchange that hides behind computation where both want the same cores (benchmarks/plan_accuracy.py)."""


class _UnitTimes:
    """Sorts the time of passes over a whole model into its units, by hooks at the blocks' doors in both directions."""

    def __init__(self, model: nn.Module, profile: ModelProfile) -> None:
        self._model = model
        self._shapes = [unit.shape for unit in profile.units]
        self._names = [unit.name for unit in profile.units]
        self._blocks = [number for number, unit in enumerate(profile.units) if unit.kind == "block"]
        self._forward: dict[str, list[float]] = {}
        self._backward: dict[str, list[float]] = {}
        self._marks: list[tuple[str, int, float]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> _UnitTimes:
        for number in self._blocks:
            block = self._model.get_submodule(self._names[number])
            self._handles.append(block.register_forward_pre_hook(self._mark("enter", number)))
            self._handles.append(block.register_forward_hook(self._leave(number)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, passes: Callable[[], torch.Tensor], *, keep: bool) -> None:
        """One forward and backward pass."""
        self._marks = []
        device = next(self._model.parameters()).device
        started = _now(device)
        total = passes()
        middle = _now(device)
        cast("Any", total).backward()
        ended = _now(device)
        if not keep:
            return
        forward, backward = self._sorted(started, middle, ended)
        for number, shape in enumerate(self._shapes):
            self._forward.setdefault(shape, []).append(forward.get(number, 0.0))
            self._backward.setdefault(shape, []).append(backward.get(number, 0.0))

    def medians(self) -> dict[str, tuple[float, float]]:
        """Seconds forward and backward by shape."""
        return {shape: (_median(self._forward[shape]), _median(self._backward[shape])) for shape in self._forward}

    def _mark(self, what: str, number: int) -> Callable[..., None]:
        def mark(*_: Any) -> None:
            self._marks.append((what, number, time.perf_counter()))

        return mark

    def _leave(self, number: int) -> Callable[..., None]:
        def left(block: nn.Module, args: Any, result: Any) -> None:
            self._marks.append(("leave", number, time.perf_counter()))
            tensors = [t for t in trees.leaves_of(result) if isinstance(t, torch.Tensor) and t.requires_grad]
            if tensors:
                # The gradient of a block's result is there when all that runs after the block has been gone through.
                cast("Any", tensors[0]).register_hook(self._back(number))

        return left

    def _back(self, number: int) -> Callable[[torch.Tensor], None]:
        def arrived(_: torch.Tensor) -> None:
            self._marks.append(("back", number, time.perf_counter()))

        return arrived

    def _sorted(self, started: float, middle: float, ended: float) -> tuple[dict[int, float], dict[int, float]]:
        enter = {number: at for what, number, at in self._marks if what == "enter"}
        leave = {number: at for what, number, at in self._marks if what == "leave"}
        back = {number: at for what, number, at in self._marks if what == "back"}
        forward = {number: leave[number] - enter[number] for number in self._blocks}
        backward: dict[int, float] = {}
        first, last = self._blocks[0] if self._blocks else 0, self._blocks[-1] if self._blocks else 0
        outside = middle - started - sum(forward.values())
        for number in self._blocks:
            # From its own result's gradient to that of the block before, which is its input's.
            until = back.get(number - 1, ended) if number > first else ended
            backward[number] = max(0.0, until - back.get(number, until))
        ends = [number for number in range(len(self._shapes)) if number not in forward]
        before = enter[first] - started if self._blocks else 0.0
        for number in ends:
            is_last = number > last or not self._blocks
            forward[number] = outside - before if is_last else before
            backward[number] = (back.get(last, ended) - middle) if is_last else 0.0
        if self._blocks and ends and ends[0] < first and len(self._blocks) > 1:
            # What runs before the blocks is gone through after the first one, whose own time is known from its like.
            like = _median([backward[number] for number in self._blocks[1:]])
            same = self._shapes[first] in {self._shapes[number] for number in self._blocks[1:]}
            if same and backward[first] > like:
                backward[ends[0]] = backward[first] - like
                backward[first] = like
        return forward, backward


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _largest(told: Sequence[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """The slowest rank's time of each shape: a step waits for it."""
    return {shape: (max(one[shape][0] for one in told), max(one[shape][1] for one in told)) for shape in told[0]}


def _first(sample: Any, size: int) -> Any:
    """A batch of `size` samples, from the first ones of `sample`, again and again where it has fewer."""
    tensors = [leaf for leaf in trees.leaves_of(sample) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    have = int(tensors[0].shape[0])
    index = torch.arange(size) % have

    def cut(leaf: Any) -> Any:
        return leaf[index] if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == have else leaf

    return trees.map_leaves(cut, sample)


def _optimizer_traffic(model: nn.Module, optimizer: MakeOptimizer) -> float:
    """Bytes per second at which the user's optimizer moves 32 bytes for each parameter, as AdamW must at least."""
    twins = [nn.Parameter(p.detach().clone()) for p in model.parameters() if p.requires_grad]
    while len(twins) > 1 and sum(twin.numel() for twin in twins) > 20_000_000:
        twins = twins[: len(twins) // 2]
    made = optimizer(twins)
    times: list[float] = []
    for _ in range(_REPEATS + 1):
        for twin in twins:
            twin.grad = torch.ones_like(twin)
        started = _now(twins[0].device)
        made.step()
        times.append(_now(twins[0].device) - started)
    return 32.0 * sum(twin.numel() for twin in twins) / _median(times[1:])


def _matmul_rate(device: torch.device) -> float:
    a = torch.ones(_MATMUL, _MATMUL, device=device)
    times: list[float] = []
    for _ in range(_REPEATS + 1):
        started = _now(device)
        _ = a @ a
        times.append(_now(device) - started)
    return 2.0 * _MATMUL**3 / _median(times[1:])


def _memory_bytes(device: torch.device, ranks: int) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks
