"""Prints what the named extras of `pyproject.toml` need, without the project itself, each pinned by `constraints.txt`.

`requirements.py services stack` in an image lets a layer with dependencies outlive changes of our code. It runs where
nothing is installed yet: standard library only.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

_OURS = re.compile(r"distroml\[([^]]*)]")


def needed(project: Mapping[str, object], extras: Iterable[str]) -> list[str]:
    """Requirements of the project and these extras, sorted; an extra that asks for others of ours brings theirs.

    Raises:
        KeyError: there is no such extra.
    """
    optional = cast("dict[str, list[str]]", project["optional-dependencies"])
    base = cast("list[str]", project["dependencies"])
    found: set[str] = set(base)
    waiting, seen = list(extras), set[str]()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in optional[extra]:
            if ours := _OURS.fullmatch(requirement):
                waiting += ours[1].split(",")
            else:
                found.add(requirement)
    return sorted(found)


def main(arguments: Sequence[str]) -> None:
    """Print a requirements file for `pip install -r`."""
    folder = Path(__file__).resolve().parent
    pyproject = next(path for path in (folder, *folder.parents) if (path / "pyproject.toml").exists())
    project = tomllib.loads((pyproject / "pyproject.toml").read_text())["project"]
    print(f"--constraint {folder / 'constraints.txt'}", *needed(project, arguments), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
