"""Dependencies point one way: the contracts of pyproject.toml hold, and each of them can fail.

The planted violations stand in a skeleton: the real module names, with nothing in them. So a contract that names a
folder which is gone, or that import-linter does not understand, fails here too.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT, modules, name_of, pyproject

CONTRACTS = {contract["id"]: contract["name"] for contract in pyproject()["tool"]["importlinter"]["contracts"]}

# contract: what is planted, (importing module, imported module) each.
PLANTED = {
    "layers": [
        ("distroml.checkpoint", "distroml.scheduler"),
        ("distroml.scheduler.domain", "distroml.checkpoint.domain"),
        ("distroml.rendezvous", "distroml.telemetry"),
        ("distroml.telemetry", "distroml.agent"),
        ("distroml.cli", "distroml.scheduler"),
        ("distroml.eventstore", "distroml.rpc"),
        ("distroml.rpc", "distroml.runtime"),
        ("distroml.statestore", "distroml.eventstore"),
        ("distroml.events", "distroml.manifest"),
        ("distroml.manifest", "distroml.objectstore"),
    ],
    "services-without-runtime": [
        ("distroml.agent", "distroml.runtime"),
        ("distroml.telemetry", "distroml.runtime"),
        ("distroml.scheduler", "distroml.cli"),
        ("distroml.checkpoint", "torch"),
    ],
    "service-layers": [
        ("distroml.scheduler.domain", "distroml.scheduler.adapters"),
        ("distroml.rendezvous.adapters", "distroml.rendezvous.server"),
        ("distroml.checkpoint.server", "distroml.checkpoint.__main__"),
    ],
    "pure-domains": [
        ("distroml.scheduler.domain", "distroml.rpc"),
        ("distroml.checkpoint.domain", "distroml.api.checkpoint.v1.checkpoint_pb2"),
        ("distroml.agent.domain", "distroml.objectstore"),
        ("distroml.rendezvous.domain", "time"),
        ("distroml.telemetry.domain", "grpc"),
    ],
    "training-without-server": [
        ("distroml.runtime", "distroml.rpc"),
        ("distroml.runtime", "distroml.api"),
        ("distroml.runtime", "grpc"),
        ("distroml.runtime", "google.protobuf"),
        ("distroml.workerlink", "distroml.api"),
    ],
    "pure-libraries": [
        ("distroml.manifest", "torch"),
        ("distroml.manifest", "distroml.events"),
        ("distroml.workerlink", "numpy"),
    ],
    "bare-events": [("distroml.events", "msgspec")],
    "light-stores": [
        ("distroml.eventstore", "grpc"),
        ("distroml.objectstore", "torch"),
        ("distroml.statestore", "distroml.observability"),
    ],
    "observability-apart": [("distroml.observability", "distroml.events"), ("distroml.observability", "grpc")],
    "light-holder": [("distroml.agent.holder", "msgspec"), ("distroml.agent.holder", "distroml.workerlink")],
    "contract-at-the-border": [("distroml.bundle", "distroml.api")],
}


def lint(folder: Path, *roots: str) -> tuple[int, str]:
    """import-linter's verdict on the tree of `folder` under this repository's contracts."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(roots), "COLUMNS": "400", "NO_COLOR": "1"}
    command = [Path(sys.executable).with_name("lint-imports"), "--config", ROOT / "pyproject.toml", "--no-cache"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def skeleton(folder: Path) -> Path:
    """Every module of the product without its content, and the modules that the design gives every service."""
    names = [path.relative_to(path.parents[len(path.relative_to(ROOT).parts) - 3]) for path in modules(generated=True)]
    for service in ("agent", "checkpoint", "relay", "rendezvous", "scheduler", "telemetry"):
        base = Path("distroml", service)
        names += [base / "__main__.py", base / "server.py", base / "domain/__init__.py", base / "adapters/__init__.py"]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        for parent in path.relative_to(folder).parents:
            if parent.parts[1:]:
                (folder / parent / "__init__.py").touch()
    return folder


def plant(folder: Path, importer: str, imported: str) -> str:
    """Write the import, and return the line by which import-linter names it."""
    base = folder.joinpath(*importer.split("."))
    path = base / "planted.py" if base.is_dir() else base.with_suffix(".py")
    with path.open("a") as file:
        print(f"import {imported}", file=file)
    name = f"{importer}.planted" if base.is_dir() else importer
    return f"{name} -> {imported}"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    folder = skeleton(tmp_path_factory.mktemp("clean"))
    return lint(folder, str(folder))


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What import-linter says of each contract, with every violation planted."""
    folder = skeleton(tmp_path_factory.mktemp("planted"))
    for planted in PLANTED.values():
        for importer, imported in planted:
            plant(folder, importer, imported)
    _, text = lint(folder, str(folder))
    details = text.partition("Broken contracts")[2]
    sections = re.split(rf"^({'|'.join(map(re.escape, CONTRACTS.values()))})$", details, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))


def test_the_tree_keeps_its_contracts() -> None:
    code, text = lint(ROOT)
    assert code == 0, text


def test_a_skeleton_without_violations_keeps_them(clean: tuple[int, str]) -> None:
    code, text = clean
    assert code == 0, text
    assert f"{len(CONTRACTS)} kept, 0 broken" in text


def test_every_contract_has_a_planted_violation() -> None:
    assert PLANTED.keys() == CONTRACTS.keys()


@pytest.mark.parametrize(
    ("contract", "importer", "imported"),
    [(contract, *planted) for contract, all_planted in PLANTED.items() for planted in all_planted],
)
def test_a_planted_violation_is_named(contract: str, importer: str, imported: str, verdicts: dict[str, str]) -> None:
    said = verdicts.get(CONTRACTS[contract], "")
    # An external package is one node, whatever of it is imported.
    target = imported if imported.startswith("distroml") else imported.partition(".")[0]
    assert re.search(rf"{re.escape(importer)}(\.planted)? -> {re.escape(target)}\b", said), said


# ---- What "only" means: allow-lists, for which import-linter has no contract.

PURE = {"distroml.events", "distroml.manifest", "distroml.planner", "distroml.workerlink"}
STANDARD = sys.stdlib_module_names
# Standard modules that a pure function can need.
HARMLESS = {
    *("__future__", "abc", "bisect", "collections", "contextlib", "dataclasses", "decimal", "enum", "fractions"),
    *("functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "re", "signal", "statistics"),
    *("string", "struct", "textwrap", "types", "typing"),
}


def allowed_in(module: str) -> tuple[set[str], str] | None:
    """The packages that a module may import, with words for them; None where only the contracts above hold."""
    service = re.match(r"(distroml\.\w+)\.domain\b", module)
    if service:
        # Structs of msgspec are what dataclasses are, and folded some twenty times as fast.
        allowed = HARMLESS | PURE | {"msgspec", f"{service[1]}.domain"}
        return allowed, "events, the pure libraries, msgspec and harmless standard modules"
    root = ".".join(module.split(".")[:2])
    if root == "distroml.events":
        return {*STANDARD, root}, "the standard library"
    if root in PURE:
        return {*STANDARD, "msgspec", root}, "the standard library and msgspec"
    if module == "distroml.agent.holder":
        return {*STANDARD, "distroml.agent"}, "the standard library"
    return None


def imports(source: str) -> set[str]:
    """Dotted names of what a source imports, outside `if TYPE_CHECKING`."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "." * node.level)
        pending += ast.iter_child_nodes(node)
    return found


def strangers(module: str, source: str) -> list[str]:
    """Imports of a module that its place does not allow."""
    rule = allowed_in(module)
    if rule is None:
        return []
    allowed, words = rule
    return [
        f"{module} imports {name}; allowed are {words}"
        for name in sorted(imports(source))
        if not any(name == one or name.startswith(f"{one}.") for one in allowed)
    ]


def test_pure_modules_import_what_is_pure() -> None:
    found = [problem for path in modules() for problem in strangers(name_of(path), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("distroml.scheduler.domain.job", "import time"),
        ("distroml.scheduler.domain.job", "from datetime import datetime"),
        ("distroml.scheduler.domain.job", "from distroml.scheduler.settings import Settings"),
        ("distroml.scheduler.domain.job", "from distroml.rpc import errors"),
        ("distroml.scheduler.domain.job", "def f():\n    import random"),
        ("distroml.scheduler.domain.job", "from . import cycle"),
        ("distroml.manifest.chunks", "import numpy"),
        ("distroml.events.ids", "import msgspec"),
        ("distroml.agent.holder", "import psutil"),
    ],
)
def test_a_stranger_is_noticed(module: str, source: str) -> None:
    assert strangers(module, source)


@pytest.mark.parametrize(
    "source",
    [
        "from distroml.events import Rejection",
        "from distroml.scheduler.domain.job import Job",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
    ],
)
def test_what_is_pure_is_welcome(source: str) -> None:
    assert strangers("distroml.scheduler.domain.placement", source) == []
