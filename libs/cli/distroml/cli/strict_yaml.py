"""YAML read strictly against a schema: every mistake is named with its line and a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, cast

import yaml

from distroml.cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Field:
    """What one field takes.

    Attributes:
        kind: its type in words: "whole number", "number", "text", "list of texts", "mapping of texts", "mapping", or
            two of them joined by " or "; "anything" is taken as it is.
        below: the fields below it, where it may be a mapping.
        required: whether its parent must have it.
        above: a number must be more than this.
        one_of: a text must be one of these, where there are any.
    """

    kind: str
    below: Mapping[str, Field] = field(default_factory=dict[str, "Field"])
    required: bool = False
    above: float = float("-inf")
    one_of: tuple[str, ...] = ()


class Problems:
    """The mistakes found so far, in the order of the file's lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, text: str) -> None:
        """Note a mistake; line 1 stands for the whole file."""
        self._found.append((line, text))

    def __contains__(self, word: str) -> bool:
        return any(word in text for _, text in self._found)

    def check(self) -> None:
        """Raise `UsageError` with all of them, if there are any."""
        if self._found:
            count = f"{len(self._found)} problem{'s' if len(self._found) > 1 else ''}"
            lines = "\n".join(f"  line {line}: {text}" for line, text in sorted(self._found, key=lambda one: one[0]))
            raise UsageError(f"{self._path} has {count}:\n{lines}")


@dataclass(frozen=True, slots=True)
class Document:
    """A file's values, typed as the schema says; absent fields are absent. `lines` has the line of each dotted name."""

    values: Mapping[str, Any]
    lines: Mapping[str, int]
    problems: Problems

    def line(self, name: str) -> int:
        """Where a dotted name stands, or the nearest that is there above it."""
        while name and name not in self.lines:
            name = name.rpartition(".")[0]
        return self.lines.get(name, 1)


def read(path: Path, schema: Mapping[str, Field], *, what: str, such_as: str) -> Document:
    """Read a file; what it says wrongly is in `problems`, for the caller to add to and to check.

    Args:
        path: the file.
        schema: its fields.
        what: it is, for people ("job file").
        such_as: an example of a field.

    Raises:
        UsageError: no such file, or no YAML.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the {what} {path}: {error}") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {error}") from error
    reader = _Reader(Problems(path))
    if isinstance(node, yaml.MappingNode):
        values = reader.mapping(node, schema, "")
    else:
        values: dict[str, Any] = {}
        reader.problems.add(1, f"a {what} is a mapping of fields, such as `{such_as}`")
    return Document(values, reader.lines, reader.problems)


class _Reader:
    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.lines: dict[str, int] = {}

    def mapping(self, node: yaml.MappingNode, schema: Mapping[str, Field], prefix: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            key = str(key_node.value)
            name = prefix + key
            if key not in schema:
                near = difflib.get_close_matches(key, schema, 1, 0.5)
                advice = f"; did you mean `{prefix}{near[0]}`?" if near else f"; known are {', '.join(schema)}"
                self.problems.add(_line(key_node), f"unknown field `{name}`{advice}")
            elif key in values:
                self.problems.add(_line(key_node), f"`{name}` is given twice")
            else:
                self.lines[name] = _line(key_node)
                values[key] = self.value(value_node, schema[key], name)
        for key, wanted in schema.items():
            if wanted.required and key not in values:
                where = self.lines.get(prefix.removesuffix("."), 1)
                self.problems.add(where, f"`{prefix}{key}` is missing: it takes a {wanted.kind}")
        return values

    def value(self, node: yaml.Node, wanted: Field, name: str) -> Any:
        if wanted.kind == "anything":
            return self._anything(node, name)
        if wanted.below and isinstance(node, yaml.MappingNode):
            return self.mapping(node, wanted.below, name + ".")
        for kind in wanted.kind.split(" or "):
            value = _typed(node, kind)
            if value is not None:
                self._bounds(value, wanted, name, _line(node))
                return value
        shown = repr(str(node.value))[:40] if isinstance(node, yaml.ScalarNode) else f"a {node.tag.rpartition(':')[2]}"
        self.problems.add(_line(node), f"`{name}` takes a {wanted.kind}, not {shown}")
        return None

    def _anything(self, node: yaml.Node, name: str) -> object:
        try:
            return yaml.safe_load(cast(Any, yaml).serialize(node))
        except yaml.YAMLError as error:
            self.problems.add(_line(node), f"`{name}` cannot be read: {error}")
            return None

    def _bounds(self, value: object, wanted: Field, name: str, line: int) -> None:
        if isinstance(value, int | float) and not value > wanted.above:
            self.problems.add(line, f"`{name}` must be above {wanted.above:g}, got {value:g}")
        if isinstance(value, str) and wanted.one_of and value not in wanted.one_of:
            self.problems.add(line, f"`{name}` is one of {', '.join(wanted.one_of)}, not {value!r}")


def _typed(node: yaml.Node, kind: str) -> Any:
    """The node's value as that kind; None where it is another."""
    tag = node.tag.rpartition(":")[2]
    match kind:
        case "whole number" if tag == "int":
            return int(str(node.value).replace("_", ""), 0)
        case "number" if isinstance(node, yaml.ScalarNode) and tag in ("int", "float", "str"):
            # YAML 1.1 takes 2e3 for a text.
            try:
                value = float(str(node.value).replace("_", ""))
            except ValueError:
                return None
            return value if isfinite(value) else None
        case "text" if isinstance(node, yaml.ScalarNode) and tag == "str":
            return str(node.value)
        case "list of texts" if isinstance(node, yaml.SequenceNode):
            items = cast("list[yaml.Node]", node.value)
            if all(isinstance(item, yaml.ScalarNode) for item in items):
                return [str(item.value) for item in items]
        case "mapping of texts" if isinstance(node, yaml.MappingNode):
            pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
            if all(isinstance(value, yaml.ScalarNode) for _, value in pairs):
                return {str(key.value): str(value.value) for key, value in pairs}
        case _:
            pass
    return None


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1 if node.start_mark is not None else 0
