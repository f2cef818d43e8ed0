"""Names of code: what other code measured is told apart by them, and what the same code measured is found again."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_RUNTIME, _SCHEMES = Path("libs/runtime/distroml/runtime"), Path("libs/runtime/distroml/runtime/compress")
_OWN = Path("benchmarks/compression")
_LESSONS = (Path("examples/gpt"), Path("examples/digits"))
_SUFFIXES = (".py", ".cpp", ".h", ".inc")


@functools.cache
def of_timings() -> str:
    """Of all that a step's time and bytes depend on: the runtime, the lessons, the links, and how they are timed."""
    return named(_ROOT, [_RUNTIME, _OWN, Path("benchmarks/links"), *_LESSONS])


@functools.cache
def of_losses() -> str:
    """Of what losses after so many steps depend on: schemes, and how contenders step and what they learn.

    Counting them takes hours. So the controller is left out, whose changes are replayed, and all of the runtime that
    carries what schemes say: that gives the same sums, as its tests hold it to.
    """
    learning = [_OWN / name for name in ("contenders.py", "learning.py", "making.py", "stepping.py")]
    return named(_ROOT, [_SCHEMES, *learning, *_LESSONS], without=_SCHEMES / "control")


def named(root: Path, parts: Iterable[Path], *, without: Path | None = None) -> str:
    """A name of the sources in `parts` (files and folders below `root`) and of torch; comments are no part of it."""
    found = {file for part in parts for file in ([root / part] if part.suffix else (root / part).rglob("*"))}
    digest = hashlib.sha256(version("torch").encode())
    for file in sorted(found):
        path = file.relative_to(root)
        if file.suffix in _SUFFIXES and not (without and path.is_relative_to(without)):
            digest.update(f"{path}\0{_meaning(file)}\0".encode())
    return digest.hexdigest()[:10]


def _meaning(file: Path) -> str:
    """What a file does: of Python neither comments nor docstrings, nor how lines are broken."""
    text = file.read_text()
    if file.suffix != ".py":
        return text
    return ast.dump(_Silent().visit(ast.parse(text)))


class _Silent(ast.NodeTransformer):
    """Takes away what only says something."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node
