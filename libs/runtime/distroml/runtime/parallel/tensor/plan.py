"""Which layers of a model are split along tp: the model's own word or its structure's, used as far as it is proved."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distroml.runtime.parallel.tensor.calls import BlockCall, record_calls
from distroml.runtime.parallel.tensor.infer import Branch, branches_of
from distroml.runtime.parallel.tensor.layers import is_linear, is_transposed
from distroml.runtime.parallel.tensor.layout import Split
from distroml.runtime.parallel.tensor.proof import Trial, prove

_HEADS = ("num_heads", "n_head", "n_heads", "num_attention_heads", "heads", "nhead")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")


class NoTensorPlan(ValueError):
    """No layer of the model can be split that way; the message says what was tried, and why it failed."""


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """What is split at one degree.

    Attributes:
        degree: tp.
        splits: by the path of a linear layer in the whole model.
        overrides: by a module's path, attributes that count heads or widths, with their value on one rank.
        summed: parameters that stay whole, but whose gradients must be summed along tp.
        reasons: what was left whole, and why; one line each.
    """

    degree: int
    splits: dict[str, Split] = field(default_factory=dict[str, Split])
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    summed: set[str] = field(default_factory=set[str])
    reasons: tuple[str, ...] = ()

    def split_of(self, parameter: str) -> tuple[Split, int] | None:
        """The split of a parameter of the whole model, and its divided dimension; None where it stays whole."""
        path, _, kind = parameter.rpartition(".")
        split = self.splits.get(path)
        if split is None:
            return None
        if kind == "bias":
            return (split, 0) if split.kind == "column" else None
        return split, split.weight_dim


def choose_tensor_plan(
    model: nn.Module, blocks: Sequence[str], loss: Callable[..., Any] | None, sample: Any, degree: int
) -> TensorPlan:
    """The most that can be split at `degree`, each branch proved against the undivided block. No process group needed.

    Args:
        model: undivided, on any device; unchanged afterwards.
        blocks: paths of its chain.
        loss: `(model, batch) -> (sum, count)`, run once on fake weights to see how blocks are called.
        sample: a batch on the CPU.
        degree: tp.

    Raises:
        NoTensorPlan: nothing can be split.
    """
    if not blocks or loss is None:
        raise NoTensorPlan("tensor parallelism splits the blocks of a chain, and there is none")
    calls = record_calls(model, blocks, lambda one: loss(one, sample))
    plan = TensorPlan(degree)
    reasons: dict[str, str] = {}
    known: dict[str, list[_Proved]] = {}
    for path, call in calls.items():
        if call.signature not in known:
            known[call.signature] = _split_block(model, path, call, degree, reasons)
        for proved in known[call.signature]:
            plan.splits.update({f"{path}.{name}": split for name, split in proved.trial.splits.items()})
            plan.summed.update(f"{path}.{name}" for name in proved.summed)
            for name, values in proved.trial.overrides.items():
                plan.overrides.setdefault(f"{path}.{name}" if name else path, {}).update(values)
    if not plan.splits:
        told = "; ".join(reasons.values()) or "no block has a linear layer that follows another"
        raise NoTensorPlan(f"no layer can be split by {degree}: {told}")
    return TensorPlan(degree, plan.splits, plan.overrides, plan.summed, tuple(reasons.values()))


@dataclass(frozen=True, slots=True)
class _Proved:
    branch: Branch
    trial: Trial
    summed: frozenset[str]


def _split_block(model: nn.Module, path: str, call: BlockCall, degree: int, reasons: dict[str, str]) -> list[_Proved]:
    block = model.get_submodule(path)
    found: list[_Proved] = []
    own = _own_plan(model, path, block)
    named = {name for branch in own for name in (*branch.columns, *branch.rows)}
    others = [one for one in branches_of(block, call) if not named & {*one.columns, *one.rows}]
    for branch in (*own, *others):
        failures: list[str] = []
        for trial in _trials(block, branch, degree, model):
            verdict = prove(block, call, trial, degree)
            if not verdict.failure:
                found.append(_Proved(branch, trial, verdict.summed))
                break
            failures.append(verdict.failure)
        else:
            told = failures[0] if failures else f"its heads or widths are not divisible by {degree}"
            reasons[f"{call.signature}{branch}"] = f"{path}: {branch} stays whole on every rank: {told}"
    if len(found) > 1:
        together = Trial(
            {name: split for one in found for name, split in one.trial.splits.items()},
            _merged(one.trial.overrides for one in found),
        )
        if failure := prove(block, call, together, degree).failure:
            reasons[f"{call.signature}+"] = f"{path}: only {found[0].branch} is split, not all together: {failure}"
            del found[1:]
    return found


def _own_plan(model: nn.Module, path: str, block: nn.Module) -> list[Branch]:
    """The branches that a Hugging Face model names in its configuration's tensor-parallel plan."""
    config = getattr(model, "config", None)
    named: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    columns: dict[str, list[str]] = {}
    rows: dict[str, list[str]] = {}
    for name, module in block.named_modules():
        if not is_linear(module):
            continue
        for pattern, style in named.items():
            if fnmatch.fnmatch(f"{path}.{name}", f"*{pattern}") and style in ("colwise", "rowwise"):
                side = columns if style == "colwise" else rows
                side.setdefault(name.rpartition(".")[0], []).append(name)
    return [Branch(tuple(columns[parent]), tuple(rows[parent])) for parent in columns if parent in rows]


def _trials(block: nn.Module, branch: Branch, degree: int, model: nn.Module) -> Iterable[Trial]:
    for overrides in _overrides(block, branch, degree):
        for sections in _sections(block, branch, model):
            splits = {name: _split(block, name, "column", sections.get(name)) for name in branch.columns}
            splits |= {name: _split(block, name, "row", None) for name in branch.rows}
            if all(split.divides(degree) for split in splits.values()):
                yield Trial(splits, overrides)


def _split(block: nn.Module, name: str, kind: Any, sections: tuple[int, ...] | None) -> Split:
    module = block.get_submodule(name)
    weight_dim = (1 if kind == "column" else 0) if is_transposed(module) else (0 if kind == "column" else 1)
    length = int(getattr(module, "weight").shape[weight_dim])  # noqa: B009 - a module's attribute is Any
    return Split(kind, sections or (length,), weight_dim)


def _width(block: nn.Module, name: str, *, out: bool) -> int:
    module = block.get_submodule(name)
    weight: Any = module.weight
    return int(weight.shape[1 if is_transposed(module) == out else 0])


def _sections(block: nn.Module, branch: Branch, model: nn.Module) -> Iterable[dict[str, tuple[int, ...]]]:
    """How the columns' outputs may be made of parts: of one, of queries, keys and values, of gate and up."""
    yield {}
    if len(branch.columns) != 1:
        return
    (name,) = branch.columns
    length = _width(block, name, out=True)
    taken = _width(block, branch.rows[0], out=False)
    for count in (3, 2):
        if length == count * taken:
            yield {name: (taken,) * count}
    keys = (length - taken) // 2
    if length > taken and keys != taken and taken + 2 * keys == length:
        yield {name: (taken, keys, keys)}


def _overrides(block: nn.Module, branch: Branch, degree: int) -> Iterable[dict[str, dict[str, Any]]]:
    """Which attributes to divide: none, counts of heads, widths as well, counts in a configuration of its own."""
    owners = {"": block}
    for name in (*branch.columns, *branch.rows):
        parts = name.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            owner = ".".join(parts[:depth])
            owners[owner] = block.get_submodule(owner)
    widths = {_width(block, name, out=True) for name in branch.columns}
    widths |= {_width(block, name, out=False) for name in branch.rows}
    heads: dict[str, dict[str, Any]] = {}
    wide: dict[str, dict[str, Any]] = {}
    configured: dict[str, dict[str, Any]] = {}
    for owner, module in owners.items():
        for attribute, value in vars(module).items():
            if attribute in (*_HEADS, *_KV_HEADS) and isinstance(value, int) and value % degree == 0:
                heads.setdefault(owner, {})[attribute] = value // degree
            elif isinstance(value, int) and not isinstance(value, bool) and value in widths and value % degree == 0:
                wide.setdefault(owner, {})[attribute] = value // degree
        config = vars(module).get("config")
        counts = {
            name: value // degree
            for name in (*_HEADS, *_KV_HEADS)
            if isinstance(value := getattr(config, name, None), int) and value % degree == 0
        }
        if counts:
            configured[owner] = {f"config.{name}": value for name, value in counts.items()}
    seen: list[dict[str, dict[str, Any]]] = []
    for candidate in ({}, heads, _merged((heads, wide)), _merged((heads, configured)), wide):
        if candidate not in seen:
            seen.append(candidate)
            yield candidate


def _merged(many: Iterable[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for one in many:
        for owner, values in one.items():
            made.setdefault(owner, {}).update(values)
    return made


def possible_degrees(limits: Iterable[int], most: int) -> list[int]:
    """Degrees up to `most` that divide every limit."""
    common = math.gcd(*limits) if limits else most
    return [degree for degree in range(1, most + 1) if common % degree == 0]
