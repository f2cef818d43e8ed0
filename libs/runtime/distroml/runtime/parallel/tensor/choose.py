"""Choose how a model is split, and prove it on the spot: no process group, no weights, a few tokens."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from distroml.runtime.parallel.tensor.candidates import Group, candidates, groups, read_attributes
from distroml.runtime.parallel.tensor.capture import Sample, capture
from distroml.runtime.parallel.tensor.plan import NoTensorPlan, Split, TensorPlan
from distroml.runtime.parallel.tensor.proof import Prover
from distroml.runtime.parallel.tensor.runs import along_sequence, placed
from distroml.runtime.parallel.tensor.trace import linears, modules_of

# Kinds of a transformers plan that say the same as ours; others (gathered outputs, experts spread over ranks) are not
# taken over, and structure decides.
_OWN_STYLES = {"colwise": "column", "packed_colwise": "column", "rowwise": "row", "moe_tp_experts": "experts"}

_HEADS = re.compile(r"(^|_|n)heads?$")


def choose_tensor_plan(
    model: nn.Module,
    blocks: Sequence[str],
    loss: Callable[..., Any] | None,
    sample: Any,
    degree: int,
    *,
    sequence: bool = False,
) -> TensorPlan:
    """The most that can be split at `degree`, each part proved against the undivided block. No process group needed.

    Args:
        model: any module, on any device, `meta` included; is not changed.
        blocks: paths of its chain; what is outside of it stays whole.
        loss: `(model, batch) -> (sum, count)`, run once on a copy of the model to see how blocks are called.
        sample: a batch on the CPU.
        degree: tp, above 1.
        sequence: divide hidden states along the sequence as well.

    Raises:
        NoTensorPlan: nothing can be split so; says why, and the nearest degree that works. `NoSequencePlan` where it
            can, but not along the sequence.
    """
    plan = choose_tensor_plans(model, blocks, loss, sample, [degree])[degree]
    if isinstance(plan, NoTensorPlan):
        raise plan
    if not sequence or loss is None:
        return plan
    with cast("Any", torch.random).fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return along_sequence(model, plan, loss, sample)


def choose_tensor_plans(
    model: nn.Module,
    blocks: Sequence[str],
    loss: Callable[..., Any] | None,
    sample: Any,
    degrees: Iterable[int],
) -> dict[int, TensorPlan | NoTensorPlan]:
    """For each degree what `choose_tensor_plan` gives or raises; the model is run and traced once for all."""
    if not blocks or loss is None:
        none = NoTensorPlan("tensor parallelism splits the blocks of a chain, and there is none")
        return dict.fromkeys(degrees, none)
    with cast("Any", torch.random).fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            samples = capture(model, blocks, loss, sample)
        except ValueError as error:
            return dict.fromkeys(degrees, NoTensorPlan(str(error)))
        own = _own_styles(model)
        kinds = [_Kind(one, own) for one in samples]
        return {degree: _plan(kinds, tuple(blocks), degree) for degree in degrees}


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
        self.random = self.prover.draws()

    def heads(self) -> dict[str, int]:
        """Counts of heads that the block's modules or their configurations have, by attribute."""
        found: dict[str, int] = {}
        for module in self.prover.block.modules():
            for owner in (module, vars(module).get("config")):
                for name, value in vars(owner).items() if owner is not None else ():
                    if type(value) is int and value > 0 and _HEADS.search(name):
                        found.setdefault(name, value)
        return found


def _own_styles(model: nn.Module) -> dict[str, str]:
    """Module path to style, from the plan that a transformers model has."""
    plan: Any = getattr(model, "_tp_plan", None)
    if not isinstance(plan, dict):
        return {}
    styles: dict[str, str] = {}
    for path, _ in modules_of(model):
        kind = plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", path))  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
        if kind in _OWN_STYLES:
            styles[path] = _OWN_STYLES[kind]
    return styles


def _plan(kinds: Sequence[_Kind], blocks: tuple[str, ...], degree: int) -> TensorPlan | NoTensorPlan:
    modules: dict[str, Split] = {}
    whole: dict[str, str] = {}
    heads: dict[str, int] = {}
    for kind in kinds:
        counts = kind.heads()
        common = math.gcd(*counts.values())
        for name, value in counts.items() if common > 1 else ():
            if value % degree:
                return NoTensorPlan(
                    f"{kind.paths[0]}: {name} {value} is not divisible by tp {degree}: "
                    f"nearest tp: {_nearest(common, degree)}"
                )
            label = "kv_heads" if re.search("kv|key_value", name) else "heads"
            heads[label] = math.gcd(heads.get(label, 0), value)
        splits, reasons = _split_kind(kind, degree)
        for path in kind.paths:
            modules |= placed(splits, path)
            whole |= {_join(path, inner): reason for inner, reason in reasons.items()}
    if not modules:
        reasons = "; ".join(dict.fromkeys(whole.values())) or "no linear layer feeds another inside of a block"
        return NoTensorPlan(f"no block can be split by tp {degree} ({reasons}): use tp=1")
    layouts = [layout for split in modules.values() for layout in split.parameters.values()]
    return TensorPlan(
        degree=degree,
        modules=modules,
        whole=whole,
        limits={**heads, "split width": math.gcd(*(size for layout in layouts for size in layout.segments))},
        blocks=blocks,
        random=any(kind.random for kind in kinds),
    )


def _split_kind(kind: _Kind, degree: int) -> tuple[dict[str, Split], dict[str, str]]:
    """Splits by path within the block, and reasons by the path of what stays whole."""
    proved: dict[str, Split] = {}
    reasons: dict[str, str] = {}
    for group in kind.groups:
        more, reason = _with_group(kind, proved, group, degree)
        if reason:
            reasons |= dict.fromkeys(group.paths, reason)
        proved = more
    return proved, reasons


def _with_group(kind: _Kind, proved: dict[str, Split], group: Group, degree: int) -> tuple[dict[str, Split], str]:
    """`proved` and one more group; or as it was, and why."""
    shapes = results = ""
    for candidate in candidates(kind.prover.block, group, kind.attributes, degree):
        splits = _merged(proved, candidate)
        try:
            kind.prover.try_shapes(splits, degree)
        except Exception as error:
            # A block may fail in any way when its parts do not fit together.
            shapes = shapes or _brief(error)
            continue
        try:
            return kind.prover.prove(splits, degree), ""
        except Exception as error:
            results = results or _brief(error)
    reason = results or shapes or "a width is not divisible"
    return proved, f"{group} cannot be split by {degree}: {reason}"


def _merged(one: dict[str, Split], other: dict[str, Split]) -> dict[str, Split]:
    """Both; a module that both change is changed in both ways."""
    made = {**one, **other}
    for path in one.keys() & other.keys():
        first, second = one[path], other[path]
        made[path] = replace(
            second if first.style == "inside" else first,
            parameters={**first.parameters, **second.parameters},
            attributes={**first.attributes, **second.attributes},
            summed=(*first.summed, *second.summed),
        )
    return made


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _join(path: str, inner: str) -> str:
    return f"{path}.{inner}" if path and inner else path or inner


def _nearest(count: int, degree: int) -> str:
    divisors = [divisor for divisor in range(1, count + 1) if count % divisor == 0]
    below = [divisor for divisor in divisors if divisor < degree][-1:]
    above = [divisor for divisor in divisors if divisor > degree][:1]
    return ", ".join(map(str, below + above))
