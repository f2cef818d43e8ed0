"""Job files: YAML read strictly, every mistake named with its line and a suggestion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distroml.cli import strict_yaml
from distroml.cli.strict_yaml import Field

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
    "log_cap_bytes": _INT,
}
_EXAMPLE = "command: [train.py]"


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
    document = strict_yaml.read(path, SCHEMA, what="job file", such_as=_EXAMPLE)
    if "command" not in document.values and "command" not in document.problems:
        document.problems.add(1, f"`command` is missing: the script and its arguments, such as `{_EXAMPLE}`")
    document.problems.check()
    return JobFile(document.values, path)
