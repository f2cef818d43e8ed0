"""A model's profile for the planner, from one run forward and backward on weights that take no memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distroml.planner import ModelProfile, Saved, Shape, Unit, Work
from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.flow import follow
from distroml.runtime.parallel.tensor import (
    NoSequencePlan,
    NoTensorPlan,
    TensorPlan,
    along_sequence,
    choose_tensor_plan,
)
from distroml.runtime.profile.chain import NoChain, find_chain
from distroml.runtime.profile.counting import Counted
from distroml.runtime.profile.running import CountedRun, Loss, ProfileRefused, samples_of

__all__ = ["ProfileRefused", "profile"]


def profile(model: nn.Module, loss: Loss, sample: Any, *, name: str = "") -> ModelProfile:
    """What the planner needs to know of `model`. No weights are allocated, no GPU is needed, nothing is changed.

    Args:
        model: on any device, `meta` included.
        loss: `(model, batch) -> (sum of losses, count)`.
        sample: a batch as a loader gives it, on the CPU; its first dimension counts samples.
        name: for people.

    Raises:
        ProfileRefused: the loss cannot be run on the sample, or gives no sum and count; nothing is there to train.
    """
    samples = samples_of(sample)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ProfileRefused("the model has no parameter that requires a gradient: there is nothing to train")
    try:
        chain = find_chain(model, lambda one: loss(one, sample)).blocks
        no_pp = ""
    except NoChain as error:
        chain, no_pp = (), str(error)
    split, no_tp = _tensor_plan(model, chain, loss, sample)
    sequence, no_sequence = _sequence(model, split, loss, sample)
    if chain:
        no_pp = _why_no_cut(model, chain, loss, sample)
    run = CountedRun(model, chain, split, loss, sample)
    units = [_unit(run, index, samples) for index in range(len(chain) + 2)]
    kept = [unit for unit in units if unit is not None]
    tied, sizes = _tied(run, kept)
    first = next(model.parameters(), torch.empty(0))
    return ModelProfile(
        name=name or type(model).__name__,
        units=tuple(kept),
        tied=tied,
        tied_parameters=sizes,
        parameter_itemsize=first.element_size(),
        tp_limits={} if split is None else split.limits,
        no_tp=no_tp,
        no_pp=no_pp,
        no_sequence=no_sequence,
        sequence=sequence,
        tokens=max(1, round(run.count / samples)),
    )


def _tensor_plan(model: nn.Module, chain: Sequence[str], loss: Loss, sample: Any) -> tuple[TensorPlan | None, str]:
    why = "the model has no chain of blocks"
    for degree in (2, 3, 5) if chain else ():
        try:
            return choose_tensor_plan(model, chain, loss, sample, degree), ""
        except NoTensorPlan as error:
            why = str(error)
    return None, why


def _sequence(model: nn.Module, split: TensorPlan | None, loss: Loss, sample: Any) -> tuple[int, str]:
    """What every degree of sequence parallelism must divide, and why there is none."""
    if split is None:
        return 0, "it needs tensor parallelism"
    try:
        runs = along_sequence(model, split, loss, sample).sequence
    except NoSequencePlan as error:
        return 0, str(error)
    return math.gcd(*(run.length for run in runs)), ""


def _why_no_cut(model: nn.Module, chain: Sequence[str], loss: Loss, sample: Any) -> str:
    try:
        follow(model, lambda one: loss(one, sample)[0], chain, [*range(len(chain) + 1)])
    except NoCut as error:
        return str(error)
    except Exception as error:
        return f"the forward pass cannot be followed without real weights ({type(error).__name__})"
    return ""


def _unit(run: CountedRun, index: int, samples: int) -> Unit | None:
    """Unit `index`, per sample; None for a "before" or "after" in which nothing is."""
    counted = run.counter.units[index]
    mine = [(name, p) for name, p in run.model.named_parameters() if index in run.units_of(name)]
    last = len(run.chain) + 1
    kind = "before" if index == 0 else "after" if index == last else "block"
    if kind != "block" and not mine and not counted.forward.kernels:
        return None
    trained = [(name, p) for name, p in mine if p.requires_grad]
    divided = sum(p.numel() for name, p in trained if run.split is not None and run.split.layout(name))
    name = kind if kind != "block" else run.chain[index - 1]
    flops = counted.forward.flops + counted.backward.flops
    moved = counted.forward.moved_bytes + counted.backward.moved_bytes
    # Where nothing is saved, as before the first block that is trained, inputs are not kept either.
    inputs = min(run.inputs.get(index, counted.saved["whole"]), sum(counted.saved.values()))
    largest = max(counted.forward.largest_bytes, counted.backward.largest_bytes)
    return Unit(
        name=name,
        kind=kind,
        shape=_shape(kind, run.model, name, counted, mine),
        parameters=sum(p.numel() for _, p in trained),
        split_parameters=divided,
        frozen_parameters=sum(p.numel() for _, p in mine if not p.requires_grad),
        tensors=sum(p.requires_grad for _, p in mine),
        shapes=_shapes(run, index, trained),
        forward=Work(flops=counted.forward.flops / samples, moved_bytes=counted.forward.moved_bytes / samples),
        backward=Work(flops=counted.backward.flops / samples, moved_bytes=counted.backward.moved_bytes / samples),
        split=(counted.forward.split_flops + counted.backward.split_flops) / flops if flops else 0.0,
        moved_split=(
            (counted.forward.split_moved_bytes + counted.backward.split_moved_bytes) / moved if moved else 0.0
        ),
        recomputed=Work(moved_bytes=counted.cheap_moved_bytes / samples),
        kernels=counted.forward.kernels,
        saved={
            "none": _saved(counted.saved, samples),
            "selective": _selective(counted, inputs, samples),
            "full": Saved(whole_bytes=inputs / samples),
        },
        # One result and one gradient of that size are alive beside what is saved.
        transient_bytes=2 * largest / samples,
        output_bytes=run.outputs.get(index, run.inputs.get(index + 1, 0.0)) / samples,
        tp_reduced_bytes=counted.reduced_bytes / samples,
        tp_collectives=counted.collectives,
    )


def _shapes(run: CountedRun, index: int, trained: Sequence[tuple[str, nn.Parameter]]) -> tuple[Shape, ...]:
    """Shapes of a unit's trainable tensors, those left out that an earlier unit has, too."""
    found: dict[tuple[tuple[int, ...], int | None], int] = {}
    for name, parameter in trained:
        if index == min(run.units_of(name)):
            layout = run.split.layout(name) if run.split is not None else None
            key = (tuple(parameter.shape), None if layout is None else layout.dim)
            found[key] = found.get(key, 0) + 1
    return tuple(Shape(sizes, many, divided) for (sizes, divided), many in found.items())


def _tied(run: CountedRun, units: Sequence[Unit]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Groups of places in `units` that share parameters, and how many they share."""
    places = {unit.name: place for place, unit in enumerate(units)}
    names = ["before", *run.chain, "after"]
    groups: dict[tuple[int, ...], int] = {}
    for name, parameter in run.model.named_parameters():
        group = tuple(sorted(places[names[index]] for index in run.units_of(name) if names[index] in places))
        if len(group) > 1:
            groups[group] = groups.get(group, 0) + parameter.numel()
    return tuple(groups), tuple(groups.values())


def _saved(both: dict[str, float], samples: int) -> Saved:
    return Saved(whole_bytes=both["whole"] / samples, split_bytes=both["split"] / samples)


def _selective(counted: Counted, inputs: float, samples: int) -> Saved:
    """Results of matrix products and attention, and the inputs; never more than without any recomputation."""
    plain = _saved(counted.saved, samples)
    kept = Saved(
        whole_bytes=(counted.kept["whole"] + inputs) / samples,
        partial_bytes=counted.kept["whole"] / samples,
        split_bytes=counted.kept["split"] / samples,
    )
    more = kept.whole_bytes + kept.split_bytes > plain.whole_bytes + plain.split_bytes
    return plain if more else kept


def _shape(kind: str, model: nn.Module, name: str, counted: Counted, mine: Sequence[tuple[str, nn.Parameter]]) -> str:
    if kind != "block":
        return kind
    block = model.get_submodule(name)
    sizes = sum(parameter.numel() for _, parameter in mine)
    return f"{type(block).__name__}/{sizes}/{counted.forward.flops:.6g}"
