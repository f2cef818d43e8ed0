"""Job files: YAML read strictly, every mistake named with its line and a suggestion."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from distroml.cli.errors import UsageError
from distroml.cli.options import MOST_INT


@dataclass(frozen=True, slots=True)
class Field:
    """What one field of a job file takes: its type in words, the fields below it, the largest whole number."""

    kind: str
    below: Mapping[str, Field] = field(default_factory=dict[str, "Field"])
    most: int = MOST_INT


_KINDS = {"seq": "list", "map": "mapping"}
_INT, _TEXT, _TEXTS, _MAP = Field("whole number"), Field("text"), Field("list of texts"), Field("mapping of texts")
SCHEMA: Mapping[str, Field] = {
    "name": _TEXT,
    "project": _TEXT,
    "command": _TEXTS,
    "env": _MAP,
    "python": _TEXT,
    "bundle": _TEXT,
    "workers": Field("whole number or mapping", {"min": _INT, "max": _INT, "per_node": _INT}),
    "priority": _INT,
    "retry": Field("mapping", {"max_failures": _INT, "max_preemptions": _INT}),
    "checkpoint": Field("mapping", {"keep": _INT}),
    "grace_s": _INT,
    "hang_timeout_s": _INT,
    "labels": _MAP,
    "dataset": _TEXT,
    "compress": _TEXT,
    "sync_every": _INT,
    "backend": _TEXT,
    "log_cap_bytes": Field("whole number", most=2**63 - 1),
}


@dataclass(frozen=True, slots=True)
class JobFile:
    """A job file's values, typed as `SCHEMA` says; absent fields are absent."""

    values: Mapping[str, Any]
    path: Path


def read(path: Path) -> JobFile:
    """Read a job file.

    Raises:
        UsageError: no such file, no YAML, or fields that are unknown or ill-typed: all of them, each with its line.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the job file {path}: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path} is no YAML: {error}") from error
    problems: list[str] = []
    values: dict[str, Any] = {}
    if not isinstance(node, yaml.MappingNode):
        problems.append("line 1: a job file is a mapping of fields, such as `command: [train.py]`")
    else:
        values = _mapping(node, SCHEMA, "", problems)
        if "command" not in values and not any("command" in problem for problem in problems):
            problems.append("line 1: `command` is missing: the script and its arguments, such as `command: [train.py]`")
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UsageError(f"{path} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems))
    return JobFile(values, path)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark is not None else 0


def _mapping(node: yaml.MappingNode, schema: Mapping[str, Field], prefix: str, problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
    for key_node, value_node in pairs:
        key = str(key_node.value)
        name = prefix + key
        if key not in schema:
            near = difflib.get_close_matches(key, schema, 1, 0.5)
            advice = f"; did you mean `{prefix}{near[0]}`?" if near else f"; known are {', '.join(schema)}"
            problems.append(f"line {_line(key_node)}: unknown field `{name}`{advice}")
        elif key in values:
            problems.append(f"line {_line(key_node)}: `{name}` is given twice")
        else:
            values[key] = _value(value_node, schema[key], name, problems)
    return values


def _value(node: yaml.Node, wanted: Field, name: str, problems: list[str]) -> Any:
    if wanted.below and isinstance(node, yaml.MappingNode):
        return _mapping(node, wanted.below, name + ".", problems)
    tag = node.tag.rpartition(":")[2]
    if wanted.kind.startswith("whole number") and tag == "int":
        # YAML 1.1 takes 010 and 1:30 for numbers, too, and few mean 8 and 90 by them.
        with contextlib.suppress(ValueError):
            number = int(str(node.value).replace("_", ""), 0)
            if abs(number) > wanted.most:
                problems.append(f"line {_line(node)}: `{name}` is too large a number")
            return number
    if wanted.kind == "text" and isinstance(node, yaml.ScalarNode) and tag == "str":
        return str(node.value)
    if wanted.kind == "list of texts" and isinstance(node, yaml.SequenceNode):
        items = cast("list[yaml.Node]", node.value)
        if all(isinstance(item, yaml.ScalarNode) for item in items):
            return [str(item.value) for item in items]
    if wanted.kind == "mapping of texts" and isinstance(node, yaml.MappingNode):
        pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
        if all(isinstance(value, yaml.ScalarNode) for _, value in pairs):
            return {str(key.value): str(value.value) for key, value in pairs}
    shown = repr(str(node.value))[:40] if isinstance(node, yaml.ScalarNode) else f"a {_KINDS.get(tag, tag)}"
    problems.append(f"line {_line(node)}: `{name}` takes a {wanted.kind}, not {shown}")
    return None
