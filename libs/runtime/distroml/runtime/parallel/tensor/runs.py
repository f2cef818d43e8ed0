"""Which blocks divide their hidden state along the sequence: runs that hand it straight on, proved kind by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.parallel.pipeline.errors import NoCut
from distroml.runtime.parallel.pipeline.flow import Handed, handed_on
from distroml.runtime.parallel.tensor.capture import Sample, capture
from distroml.runtime.parallel.tensor.plan import Door, NoSequencePlan, Split, Stretches, TensorPlan, inside
from distroml.runtime.parallel.tensor.proof import Prover

# A stretch of one token would go along with what has one for all: two at least, on each rank.
_LEAST_TOKENS, _LEAST_STRETCH = 8, 2


def along_sequence(
    model: nn.Module, plan: TensorPlan, loss: Callable[[nn.Module, Any], Any], sample: Any
) -> TensorPlan:
    """The plan with hidden states divided along the sequence between blocks that hand them straight on. Proved.

    Args:
        model: any module, on any device; is not changed.
        plan: proved; its splits stay.
        loss: `(model, batch) -> (sum, count)`.
        sample: a batch on the CPU.

    Raises:
        NoSequencePlan: hidden states cannot be followed or divided, or blocks compute something else then; says which.
    """
    runs = _runs(model, plan, loss, sample)
    doors = {path: run.door for run in runs for path in run.blocks}
    modules = dict(plan.modules)
    for kind in _samples(model, plan, loss, sample, doors):
        prover = Prover(kind)
        for door in dict.fromkeys(doors[path] for path in kind.paths if path in doors):
            try:
                proved = prover.prove(inside(plan.modules, kind.paths[0]), plan.degree, door)
            except Exception as error:
                # A block may fail in any way when it is called with a part of what it expects.
                reason = (str(error) or type(error).__name__).splitlines()[0][:200]
                raise NoSequencePlan(f"{kind.paths[0]} does not compute the same then: {reason}") from None
            for path in kind.paths:
                if doors.get(path) == door:
                    modules |= placed(proved, path)
    return replace(plan, modules=modules, sequence=runs)


def _samples(
    model: nn.Module,
    plan: TensorPlan,
    loss: Callable[[nn.Module, Any], Any],
    sample: Any,
    doors: Mapping[str, Door],
) -> list[Sample]:
    """Each kind of block on a few tokens that can be divided. A loss may take some off: the last one has no next."""
    tokens = plan.degree * max(_LEAST_STRETCH, -(-_LEAST_TOKENS // plan.degree))
    for more in range(plan.degree):
        found = capture(model, plan.blocks, loss, sample, tokens + more)
        lengths = {_length(one, doors[path]) for one in found for path in one.paths if path in doors}
        if all(length % plan.degree == 0 for length in lengths):
            return found
    raise NoSequencePlan(f"no short sample has sequences that tp {plan.degree} divides, to prove it on")


def _length(sample: Sample, door: Door) -> int:
    place = door.argument
    return (sample.args[place] if isinstance(place, int) else sample.kwargs[place]).shape[1]


def _runs(
    model: nn.Module, plan: TensorPlan, loss: Callable[[nn.Module, Any], Any], sample: Any
) -> tuple[Stretches, ...]:
    """Blocks that hand on a hidden state, each with its successors as long as they are called alike."""
    try:
        handed = handed_on(model, lambda one: loss(one, sample)[0], plan.blocks)
    except NoCut as error:
        raise NoSequencePlan(f"hidden states cannot be followed from block to block: {error}") from None
    found: list[Stretches] = []
    for before, after, tensors in zip(plan.blocks, plan.blocks[1:], handed, strict=False):
        hidden = next((one for one in tensors if len(one.shape) == 3), None)
        door = _door(hidden) if hidden is not None else None
        if hidden is None or door is None:
            continue
        length = hidden.shape[1]
        if length % plan.degree:
            raise NoSequencePlan(
                f"the sequence of {length} is not divisible by tp {plan.degree}; sequences of "
                f"{length - length % plan.degree} or {length + plan.degree - length % plan.degree} are"
            )
        if found and found[-1].blocks[-1] == before and found[-1].door == door:
            found[-1] = replace(found[-1], blocks=(*found[-1].blocks, after))
        elif not found or found[-1].blocks[-1] != before:
            found.append(Stretches(blocks=(before, after), door=door, length=length))
    if not found:
        raise NoSequencePlan(
            "no block hands a hidden state of the shape [batch, sequence, hidden] to the next one and to nobody else"
        )
    return tuple(found)


def _door(hidden: Handed) -> Door | None:
    """Where it goes in and out; None where it is wrapped in more than the call's own arguments or a tuple."""
    result, argument = trees.steps(hidden.result), trees.steps(hidden.argument)
    place = result[0] if result else None
    if len(argument) != 2 or len(result) > 1 or isinstance(place, str):
        return None
    return Door(argument[1], place)


def placed(splits: Mapping[str, Split], block: str) -> dict[str, Split]:
    """Splits within a block, by path from the model."""
    prefix = f"{block}." if block else ""
    return {
        f"{prefix}{path}" if path else block: replace(split, region=prefix + split.region) if split.region else split
        for path, split in splits.items()
    }
