"""Choose how a model is split, and prove it on the spot: no process group, no weights, a few tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from distroml.runtime.parallel.tensor.candidates import Group, candidates, groups, read_attributes
from distroml.runtime.parallel.tensor.capture import Sample, capture
from distroml.runtime.parallel.tensor.plan import Split, TensorPlan, TensorRefused
from distroml.runtime.parallel.tensor.proof import NotEqual, Prover
from distroml.runtime.parallel.tensor.trace import linears

# Kinds of a transformers plan that say the same as ours; others (gathered outputs, experts spread over ranks) are not
# taken over, and structure decides.
OWN_STYLES = {"colwise": "column", "packed_colwise": "column", "rowwise": "row", "moe_tp_experts": "experts"}


def choose_tensor_plans(
    model: nn.Module, blocks: Sequence[str], run: Callable[[nn.Module], object], degrees: Iterable[int]
) -> dict[int, TensorPlan | TensorRefused]:
    """For each degree above 1 a plan that is proved, or why there is none.

    Args:
        model: any module, parameters may be on meta; is not changed.
        blocks: paths of the repeated blocks; what is outside of them stays whole.
        run: calls the model that it is given with a sample of few tokens; what it returns is of no matter.
        degrees: sizes of the tp axis.

    Raises:
        ValueError: a path names no module, or `run` never called one of the blocks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kinds = [_Kind(sample, _own_styles(model)) for sample in capture(model, blocks, run)]
        return {degree: _plan(kinds, tuple(blocks), degree) for degree in degrees if degree > 1}


def choose_tensor_plan(
    model: nn.Module, blocks: Sequence[str], run: Callable[[nn.Module], object], degree: int
) -> TensorPlan:
    """The plan for one degree; see `choose_tensor_plans`.

    Raises:
        TensorRefused: nothing can be split so; says why, and the nearest degree that works.
        ValueError: a path names no module, or `run` never called one of the blocks.
    """
    plan = choose_tensor_plans(model, blocks, run, [degree])[degree]
    if isinstance(plan, TensorRefused):
        raise plan
    return plan


class _Kind:
    """One kind of block: its groups, and what its code reads."""

    def __init__(self, sample: Sample, own_styles: dict[str, str]) -> None:
        self.paths = sample.paths
        self.prover = Prover(sample)
        block, call = self.prover.block, self.prover.call
        first = sample.paths[0]
        prefix = f"{first}." if first else ""
        styles = {path.removeprefix(prefix): style for path, style in own_styles.items() if path.startswith(prefix)}
        self.groups = groups(block, linears(block, call), styles)
        self.attributes = read_attributes(block, call)
        self.random = _draws(block, call)

    def heads(self) -> dict[str, int]:
        """Counts of heads, by attribute."""
        found: dict[str, int] = {}
        for module in self.prover.block.modules():
            for owner in (module, getattr(module, "config", None)):
                for name, value in vars(owner).items() if owner is not None else ():
                    if type(value) is int and value > 0 and re.search(r"(^|_)n?_?(num_)?\w*heads?$", name):
                        found.setdefault(name, value)
        return found


def _draws(block: nn.Module, call: Callable[[nn.Module], Any]) -> bool:
    """Whether the block draws random numbers while it trains."""
    before = torch.get_rng_state()
    block.train()
    try:
        call(block)
    finally:
        block.eval()
    return not torch.equal(before, torch.get_rng_state())


def _own_styles(model: nn.Module) -> dict[str, str]:
    """Module path to style, from the plan that a transformers model has."""
    plan: Any = getattr(model, "_tp_plan", None)
    if not isinstance(plan, dict):
        return {}
    styles: dict[str, str] = {}
    for path, _ in model.named_modules():
        kind = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", path))  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
        if kind in OWN_STYLES:
            styles[path] = OWN_STYLES[kind]
    return styles


def _plan(kinds: Sequence[_Kind], blocks: tuple[str, ...], degree: int) -> TensorPlan | TensorRefused:
    modules: dict[str, Split] = {}
    whole: dict[str, str] = {}
    limits: dict[str, int] = {}
    for kind in kinds:
        heads = kind.heads()
        for name, value in heads.items():
            if value % degree:
                return TensorRefused(
                    f"{kind.paths[0]}: {name} {value} is not divisible by tp {degree}: "
                    f"nearest tp: {_nearest(math.gcd(*heads.values()), degree)}"
                )
        limits |= heads
        splits, reasons = _split_kind(kind, degree)
        for group, _ in splits:
            for row in group.rows:
                limits[f"inputs of {row.path}"] = row.inputs
        for path in kind.paths:
            prefix = f"{path}." if path else ""
            for _, proved in splits:
                modules |= {_join(path, inner): _absolute(split, prefix) for inner, split in proved.items()}
            whole |= {prefix + inner: reason for inner, reason in reasons.items()}
    if not modules:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in list(whole.items())[:3]) or "no linear feeds another"
        return TensorRefused(f"no block can be split by tp {degree} ({reasons}): use tp=1")
    return TensorPlan(
        degree=degree,
        modules=modules,
        whole=whole,
        limits=limits,
        blocks=blocks,
        random=any(kind.random for kind in kinds),
    )


def _split_kind(kind: _Kind, degree: int) -> tuple[list[tuple[Group, dict[str, Split]]], dict[str, str]]:
    proved: list[tuple[Group, dict[str, Split]]] = []
    reasons: dict[str, str] = {}
    for group in kind.groups:
        splits, reason = _first_proved(kind, group, degree)
        if splits is None:
            reasons |= dict.fromkeys(group.paths, reason)
        else:
            proved.append((group, splits))
    together: dict[str, Split] = {}
    for _, splits in proved:
        together |= splits
    if len(proved) > 1:
        kind.prover.prove(together, degree)
    return proved, reasons


def _first_proved(kind: _Kind, group: Group, degree: int) -> tuple[dict[str, Split] | None, str]:
    reason = f"a width of {group} is not divisible by {degree}"
    import os
    for splits in candidates(kind.prover.block, group, kind.attributes, degree):
        try:
            kind.prover.try_shapes(splits, degree)
            return kind.prover.prove(splits, degree), ""
        except NotEqual as error:
            if os.environ.get("DBG"): print(group, {k:(v.mend, v.attributes, [l.segments for l in v.parameters.values()]) for k,v in splits.items()}, type(error), _brief(error))
            reason = f"split over {degree} ranks, {group}: {_brief(error)}"
        except Exception as error:
            if os.environ.get("DBG"): print(group, {k:(v.mend, v.attributes, [l.segments for l in v.parameters.values()]) for k,v in splits.items()}, type(error), _brief(error))
            # A block may fail in any way when its parts do not fit together.
            reason = f"split over {degree} ranks, {group} fails: {_brief(error)}"
    return None, reason


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _join(path: str, inner: str) -> str:
    return f"{path}.{inner}" if path and inner else path or inner


def _absolute(split: Split, prefix: str) -> Split:
    return replace(split, region=prefix + split.region) if split.region else split


def _nearest(count: int, degree: int) -> str:
    divisors = [divisor for divisor in range(1, count + 1) if count % divisor == 0]
    below = [divisor for divisor in divisors if divisor < degree][-1:]
    above = [divisor for divisor in divisors if divisor > degree][:1]
    return ", ".join(map(str, below + above))
