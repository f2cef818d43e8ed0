"""The repository as the tests of its architecture see it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def roots() -> list[str]:
    """Folders that hold one portion of the `distroml` namespace each, such as `libs/events`."""
    found = [
        path.parent.relative_to(ROOT).as_posix()
        for top in ("libs", "services")
        for path in ROOT.glob(f"{top}/*/distroml")
    ]
    # An empty folder left behind by another branch is no root.
    return sorted(root for root in found if next((ROOT / root / "distroml").rglob("*.py"), None))


def modules(*, generated: bool = False) -> Iterator[Path]:
    """Every module of the product."""
    for root in roots():
        if generated or root != "libs/api":
            yield from sorted((ROOT / root / "distroml").rglob("*.py"))


def name_of(path: Path) -> str:
    """The module's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts[2:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
