"""What the model's units really take on this machine, all ranks at once: forward and backward by microbatch and tp."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from distroml.planner import MeasuredUnit, ModelProfile
from distroml.runtime.elastic import Collectives
from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.tensor import NoTensorPlan, choose_tensor_plans, part_alone
from distroml.runtime.profile.marks import Marks, Seconds, now

Loss = Callable[[nn.Module, Any], tuple[torch.Tensor, Any]]

_REPEATS = 3
# The share of the budget that blocks by themselves may take, to see what tp makes of them.
_SPLIT_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class _Call:
    """What the model called one block with, cut from its graph."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def seconds(self, block: nn.Module, device: torch.device) -> Seconds:
        """One pass of `block` with it, forward and backward."""
        started = now(device)
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
) -> tuple[MeasuredUnit, ...]:
    """Time the model's passes. Collective: ranks of one machine slow one another down here, too. Equal on every rank.

    Whole passes are sorted into units, for each microbatch. What tp makes of a block is measured on one rank's part
    of it, beside the whole block: their ratio, since nothing else runs around them.

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
    """
    device = collectives.world.device
    blocks = {unit.shape: unit.name for unit in reversed(profile.units) if unit.kind == "block"}
    whole: dict[int, dict[str, Seconds]] = {}
    parts: dict[tuple[int, int], dict[str, Seconds]] = {}
    started = time.monotonic()

    def over(share: float) -> bool:
        return any(collectives.gather(time.monotonic() - started > share * budget_s))

    calls: dict[int, dict[str, _Call]] = {}
    for size in sorted(microbatches):
        batch = _first(sample, size)
        calls[size], handles = _captured(model, blocks)
        with Marks(model, profile) as marks:
            for repeat in range(_REPEATS + 1):
                collectives.gather(None)
                marks.run(lambda batch=batch: loss(model, batch)[0], device, keep=repeat > 0)
                for handle in handles:
                    handle.remove()
        whole[size] = _slowest(collectives.gather(marks.medians()))
        if over(1 - _SPLIT_SHARE):
            break
    for tp, splits in _parts(model, profile, loss, sample, degrees).items():
        for size in whole:
            alone: dict[str, Seconds] = {}
            split: dict[str, Seconds] = {}
            for shape, part in splits.items():
                call, block = calls[size][shape], model.get_submodule(blocks[shape])
                times = [(call.seconds(block, device), call.seconds(part, device)) for _ in range(_REPEATS + 1)][1:]
                alone[shape], split[shape] = (Seconds.median(side) for side in zip(*times, strict=True))
            alone, split = (_slowest(collectives.gather(one)) for one in (alone, split))
            parts[tp, size] = {shape: whole[size][shape].times(split[shape].over(alone[shape])) for shape in splits}
            if over(1.0):
                break
    for parameter in model.parameters():
        parameter.grad = None
    return tuple(_units(profile, whole, parts, degrees))


def _units(
    profile: ModelProfile,
    whole: dict[int, dict[str, Seconds]],
    parts: dict[tuple[int, int], dict[str, Seconds]],
    degrees: Sequence[int],
) -> list[MeasuredUnit]:
    found: dict[tuple[str, int, int], MeasuredUnit] = {}
    for unit in profile.units:
        for size, seconds in whole.items():
            for tp in degrees:
                if unit.kind == "block" and tp > 1:
                    measured = parts.get((tp, size), {}).get(unit.shape)
                else:
                    # Nothing outside of blocks is divided.
                    measured = seconds[unit.shape]
                if measured is not None:
                    found[unit.shape, size, tp] = MeasuredUnit(
                        shape=unit.shape,
                        microbatch=size,
                        tp=tp,
                        forward_s=measured.forward,
                        backward_s=measured.backward,
                    )
    return list(found.values())


def _parts(
    model: nn.Module, profile: ModelProfile, loss: Loss, sample: Any, degrees: Sequence[int]
) -> dict[int, dict[str, nn.Module]]:
    """By degree and shape, what one tp rank holds of a block."""
    paths = [unit.name for unit in profile.blocks]
    wanted = [degree for degree in degrees if degree > 1]
    found: dict[int, dict[str, nn.Module]] = {}
    for degree, plan in choose_tensor_plans(model, paths, loss, sample, wanted).items():
        if not isinstance(plan, NoTensorPlan):
            shapes = {unit.shape: unit.name for unit in reversed(profile.blocks)}
            found[degree] = {shape: part_alone(model.get_submodule(path), path, plan) for shape, path in shapes.items()}
    return found


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
