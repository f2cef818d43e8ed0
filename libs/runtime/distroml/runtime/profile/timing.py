"""What the model's units really take on this machine, all ranks at once: forward and backward by microbatch and tp."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from distroml.planner import MeasuredUnit, ModelProfile, Recompute
from distroml.runtime.elastic import Collectives
from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.precision import Precision, computing_in
from distroml.runtime.parallel.recompute import recompute
from distroml.runtime.parallel.tensor import NoTensorPlan, choose_tensor_plans, part_alone
from distroml.runtime.profile.marks import Marks, Seconds, now

Loss = Callable[[nn.Module, Any], tuple[torch.Tensor, Any]]

_REPEATS = 3
# The share of the budget that blocks by themselves may take, to see what tp and recomputation make of them.
_ALONE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class _Call:
    """What the model called one block with, cut from its graph."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def seconds(self, block: nn.Module, device: torch.device, precision: Precision) -> Seconds:
        """One pass of `block` with it, forward and backward."""
        started = now(device)
        with computing_in(precision, device.type):
            result = block(*self.args, **self.kwargs)
        middle = now(device)
        outputs = [one for one in trees.leaves_of(result) if isinstance(one, torch.Tensor) and one.requires_grad]
        ones = [torch.ones_like(one) for one in outputs]
        ready = now(device)
        cast("Any", torch.autograd).backward(outputs, ones)
        return Seconds(middle - started, now(device) - ready)


def time_units(
    model: nn.Module,
    profile: ModelProfile,
    loss: Loss,
    sample: Any,
    collectives: Collectives,
    *,
    microbatches: Sequence[int],
    degrees: Sequence[int],
    budget_s: float,
    precision: Precision = "fp32",
) -> tuple[MeasuredUnit, ...]:
    """Time the model's passes. Collective: ranks of one machine slow one another down here, too. Equal on every rank.

    Whole passes are sorted into units, for each microbatch. What tp and recomputation make of a block is measured on
    a block by itself, beside the plain one: their ratio, since nothing else runs around them.

    Args:
        model: real, as it will be trained; its parameters are unchanged.
        profile: of it.
        loss: as in training.
        sample: a batch whose samples make the microbatches.
        collectives: of the world.
        microbatches: sizes to time, the smallest first; the largest are left out when time runs short, and those
            between and beyond are taken from a line.
        degrees: of tp.
        budget_s: about how long it may take.
        precision: of passes; `loss` computes in it by itself.
    """
    device = collectives.world.device
    shapes = {unit.shape: unit.name for unit in reversed(profile.blocks)}
    whole: dict[int, dict[str, Seconds]] = {}
    started = time.monotonic()

    def over(share: float) -> bool:
        return any(collectives.gather(time.monotonic() - started > share * budget_s))

    calls: dict[int, dict[str, _Call]] = {}
    for size in sorted(microbatches):
        batch = _first(sample, size)
        calls[size], handles = _captured(model, shapes)
        with Marks(model, profile) as marks:
            for repeat in range(_REPEATS + 1):
                collectives.gather(None)
                marks.run(lambda batch=batch: loss(model, batch)[0], device, keep=repeat > 0)
                for handle in handles:
                    handle.remove()
        whole[size] = _slowest(collectives.gather(marks.medians()))
        if over(1 - _ALONE_SHARE):
            break
    variants = list(_variants(model, profile, shapes, loss, sample, degrees))
    changed: dict[tuple[int, Recompute], dict[int, dict[str, Seconds]]] = {}
    # The ends first: what lies between them is between them.
    for size in sorted(whole, key=lambda size: (size not in (min(whole), max(whole)), size)):
        if size not in (min(whole), max(whole)) and over(1.0):
            break
        for variant in variants:
            ratios: dict[str, Seconds] = {}
            for shape, block in variant.blocks.items():
                call, plain = calls[size][shape], model.get_submodule(shapes[shape])
                pairs = [
                    (call.seconds(block, device, precision), call.seconds(plain, device, precision))
                    for _ in range(_REPEATS + 1)
                ]
                ratios[shape] = Seconds.median(own.over(other) for own, other in pairs[1:])
            changed.setdefault((variant.tp, variant.recompute), {})[size] = _slowest(collectives.gather(ratios))
    for parameter in model.parameters():
        parameter.grad = None
    return tuple(_units(profile, whole, changed, degrees))


def _units(
    profile: ModelProfile,
    whole: dict[int, dict[str, Seconds]],
    changed: dict[tuple[int, Recompute], dict[int, dict[str, Seconds]]],
    degrees: Sequence[int],
) -> list[MeasuredUnit]:
    """Seconds of all units; `changed` says how many times as long blocks take under a tp and a recomputation."""
    found: list[MeasuredUnit] = []

    def add(shape: str, size: int, tp: int, again: Recompute, seconds: Seconds) -> None:
        found.append(
            MeasuredUnit(
                shape=shape,
                microbatch=size,
                tp=tp,
                forward_s=seconds.forward,
                backward_s=seconds.backward,
                recompute=again,
            )
        )

    for size, units in whole.items():
        outside = {unit.shape for unit in profile.units if unit.kind != "block"}
        for shape, seconds in units.items():
            # Nothing outside of blocks is divided.
            for tp in degrees if shape in outside else (1,):
                add(shape, size, tp, "none", seconds)
    for (tp, again), sizes in changed.items():
        for size, units in whole.items():
            for shape in next(iter(sizes.values())):
                add(shape, size, tp, again, units[shape].times(_between(sizes, size, shape)))
    return found


def _between(sizes: dict[int, dict[str, Seconds]], size: int, shape: str) -> Seconds:
    """A factor for a microbatch that was not timed itself, from the nearest ones below and above."""
    below = max(one for one in sizes if one <= size)
    above = min(one for one in sizes if one >= size)
    if below == above:
        return sizes[below][shape]
    share = math.log(size / below) / math.log(above / below)
    low, high = sizes[below][shape], sizes[above][shape]
    return Seconds(
        low.forward + share * (high.forward - low.forward), low.backward + share * (high.backward - low.backward)
    )


@dataclass(frozen=True, slots=True)
class _Variant:
    """The blocks, one of each shape, as another tp or recomputation makes them."""

    tp: int
    recompute: Recompute
    blocks: dict[str, nn.Module]


def _variants(
    model: nn.Module,
    profile: ModelProfile,
    shapes: dict[str, str],
    loss: Loss,
    sample: Any,
    degrees: Sequence[int],
) -> Iterator[_Variant]:
    blocks = {shape: model.get_submodule(path) for shape, path in shapes.items()}
    yield from _recomputed(1, blocks)
    paths = [unit.name for unit in profile.blocks]
    wanted = [degree for degree in degrees if degree > 1]
    for degree, plan in choose_tensor_plans(model, paths, loss, sample, wanted).items():
        if not isinstance(plan, NoTensorPlan):
            split = {shape: part_alone(blocks[shape], path, plan) for shape, path in shapes.items()}
            yield _Variant(degree, "none", split)
            yield from _recomputed(degree, split)


def _recomputed(tp: int, blocks: dict[str, nn.Module]) -> Iterator[_Variant]:
    for kind in ("selective", "full"):
        # With the same weights: a block's are enough for all that is timed.
        copies = {
            shape: copy.deepcopy(block, {id(parameter): parameter for parameter in block.parameters()})
            for shape, block in blocks.items()
        }
        recompute(list(copies.values()), kind)
        yield _Variant(tp, kind, copies)


def _captured(model: nn.Module, blocks: dict[str, str]) -> tuple[dict[str, _Call], list[Any]]:
    """What the first pass calls one block of each shape with, and the hooks that see it."""
    calls: dict[str, _Call] = {}

    def cut(leaf: Any) -> Any:
        return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, torch.Tensor) else leaf

    def seen(shape: str) -> Callable[..., None]:
        def called(_: nn.Module, args: Any, kwargs: Any) -> None:
            calls[shape] = _Call(*trees.map_leaves(cut, (args, kwargs)))

        return called

    handles = [
        model.get_submodule(path).register_forward_pre_hook(seen(shape), with_kwargs=True)
        for shape, path in blocks.items()
    ]
    return calls, handles


def _slowest(told: Sequence[dict[str, Seconds]]) -> dict[str, Seconds]:
    """The slowest rank's time of each shape: a step waits for it."""
    return {
        shape: Seconds(max(one[shape].forward for one in told), max(one[shape].backward for one in told))
        for shape in told[0]
    }


def _first(sample: Any, size: int) -> Any:
    """A batch of `size` samples, from the first ones of `sample`, again and again where it has fewer."""
    tensors = [leaf for leaf in trees.leaves_of(sample) if isinstance(leaf, torch.Tensor) and leaf.dim()]
    have = int(tensors[0].shape[0])
    index = torch.arange(size) % have

    def cut(leaf: Any) -> Any:
        return leaf[index] if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.shape[0] == have else leaf

    return trees.map_leaves(cut, sample)
