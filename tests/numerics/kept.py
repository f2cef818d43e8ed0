"""Finished cells of the table on disk, so that a run that was ended goes on; of these very sources only."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.numerics.pool import ROOT

_SOURCES = ("libs/planner/distroml", "libs/runtime/distroml", "tests/numerics")


@dataclass(frozen=True, slots=True)
class Cell:
    """One architecture under one plan.

    Attributes:
        equal: to one process.
        text: how near, or why not.
        excepted: parameters with elements that are left out of the comparison.
    """

    equal: bool
    text: str
    excepted: tuple[str, ...] = ()


class Kept:
    """Cells by setting, architecture and plan, in a file with one line for each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sources = _digest()
        self._cells: dict[tuple[str, str, str], Cell] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            told = json.loads(line)
            if told["sources"] == self._sources:
                cell = Cell(told["equal"], told["text"], tuple(told["excepted"]))
                self._cells[told["setting"], told["architecture"], told["plan"]] = cell

    def find(self, setting: str, architecture: str, plan: str) -> Cell | None:
        """A cell that an earlier run of these sources finished."""
        return self._cells.get((setting, architecture, plan))

    def add(self, setting: str, architecture: str, plan: str, cell: Cell) -> None:
        """Keep a finished cell."""
        line = {
            "sources": self._sources,
            "setting": setting,
            "architecture": architecture,
            "plan": plan,
            **asdict(cell),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _digest() -> str:
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
