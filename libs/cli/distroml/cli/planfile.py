"""Specs for `distroml plan`: YAML whose every mistake is named with its line.

    model: {transformer: {hidden: 8192, layers: 80, heads: 64, kv_heads: 8, ffn: 28672, vocab: 128256, seq: 8192}}
    cluster: {nodes: 64, gpus_per_node: 8, gpu: h100, intra_gb_per_s: 450, inter_gb_per_s: 50}
    batch: {global: 1024}
    training: {optimizer: adamw, precision: bf16, recompute: auto}

What the fields are is the planner's to say (`distroml.planner.spec`); here each gets its line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from distroml.cli.errors import UsageError
from distroml.planner import PlanRefused, Spec, read_spec


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 2e3 for a text; here it is a number."""


cast(Any, _Loader).add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


_DEPTH = 8


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A spec's raw values, and the line of each dotted name."""

    values: Mapping[str, Any]
    lines: Mapping[str, int]
    path: Path

    def spec(self, *, live: Mapping[str, object] | None = None, training: Mapping[str, object] | None = None) -> Spec:
        """What the file says. `live` are fields of the cluster that the control plane knows better, `training` those of
        training that the command line has.

        Raises:
            UsageError: fields are unknown, missing or ill-typed: all of them, each with its line.
        """
        values = dict(self.values)
        for place, better in (("cluster", live), ("training", training)):
            fields: object = values.get(place) or {}
            if better is not None and isinstance(fields, dict):
                values[place] = {**cast("dict[str, object]", fields), **better}
        try:
            return read_spec(values)
        except PlanRefused as error:
            raise _refused(self.path, sorted(map(self._placed, str(error).splitlines()))) from error

    def _placed(self, problem: str) -> tuple[int, str]:
        name = problem.partition(" ")[0].removesuffix(":")
        while name and name not in self.lines:
            name = name.rpartition(".")[0]
        return self.lines.get(name, 1), problem


def read(path: Path) -> PlanFile:
    """Read a spec.

    Raises:
        UsageError: no such file, no YAML, or a field is given twice.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the spec {path}: {error}") from error
    try:
        node = yaml.compose(text, Loader=_Loader)
        values: object = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A day such as 2026-13-45 is a ValueError.
        raise UsageError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{path}: a spec is a mapping of `model`, `cluster`, `batch` and `training`")
    lines: dict[str, int] = {}
    twice = list(_walk(node, "", lines))
    if twice:
        raise _refused(path, twice)
    return PlanFile(cast("dict[str, Any]", values), lines, path)


def _walk(node: yaml.MappingNode, prefix: str, lines: dict[str, int]) -> list[tuple[int, str]]:
    twice: list[tuple[int, str]] = []
    for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
        name = f"{prefix}{key.value}"
        line = key.start_mark.line + 1 if key.start_mark is not None else 1
        if name in lines:
            twice.append((line, f"{name} is given twice"))
        lines[name] = line
        # An alias may lead back to where it stands.
        if isinstance(value, yaml.MappingNode) and name.count(".") < _DEPTH:
            twice += _walk(value, f"{name}.", lines)
    return twice


def _refused(path: Path, problems: list[tuple[int, str]]) -> UsageError:
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return UsageError(f"{path} has {count}:\n" + "\n".join(f"  line {line}: {text}" for line, text in problems))
