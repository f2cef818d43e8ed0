"""What import rules cannot see: calls inside domains, the environment, sizes, and lists that must agree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.architecture.repository import ROOT, modules, name_of, pyproject, roots

MAX_LINES = 400

IMPURE = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "ids.fresh_id"}
IMPURE_CALLS = {"open", "input", "print", "exec", "eval", "uuid4", "uuid1", "fresh_id", "monotonic", "time"}
IMPURE_MODULES = {"random", "secrets", "os", "time", "socket", "subprocess", "threading", "asyncio", "logging", "uuid"}

# Where a process meets its environment; everything else gets it as an argument.
MAY_READ_ENVIRONMENT = {
    "settings.py": "settings of a service",
    "libs/cli/": "the user's shell",
    "libs/runtime/": "a training script has no settings but what torchrun's and ours say",
    "libs/statestore/distroml/statestore/failpoint.py": "armed by a test from outside",
    "services/agent/distroml/agent/launcher.py": "a worker inherits the agent's search path",
    "services/agent/distroml/agent/mpihost.py": "mpirun tells a process by it who it is",
    "services/agent/distroml/agent/template.py": "a forked worker gets its own environment",
}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute of one, else empty."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def impurities(source: str) -> list[str]:
    """Clock, randomness, environment and input or output inside a source, by line."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute():
                name = dotted(node)
                if name.partition(".")[0] in IMPURE_MODULES or ".".join(name.split(".")[-2:]) in IMPURE:
                    found.append(f"line {node.lineno}: {name}")
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_CALLS:
                found.append(f"line {node.lineno}: {name}()")
            case ast.AsyncFunctionDef() | ast.Await() | ast.Global():
                found.append(f"line {node.lineno}: {type(node).__name__}")
            case _:
                pass
    return found


def domains() -> list[Path]:
    return [path for path in modules() if ".domain" in name_of(path)]


def test_domains_have_no_clock_chance_or_world() -> None:
    assert domains(), "no domain was found: the test looks in the wrong place"
    found = [f"{path.relative_to(ROOT)} {one}" for path in domains() for one in impurities(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "at = time.time()",
        "at = time.monotonic()",
        "now = datetime.now()",
        "now = datetime.datetime.now(tz)",
        "id = uuid.uuid4()",
        "id = uuid4()",
        "id = fresh_id('job')",
        "x = random.random()",
        "x = secrets.token_hex()",
        "x = os.environ['HOME']",
        "with open('x') as f: pass",
        "async def decide(): pass",
        "clock = time.time",
    ],
)
def test_an_impurity_is_noticed(source: str) -> None:
    assert impurities(source)


def test_arithmetic_is_no_impurity() -> None:
    assert impurities("def decide(state, command):\n    return command.at_ms + state.opened_at_ms") == []


def reads_environment(source: str) -> bool:
    return any(
        dotted(node) in ("os.environ", "os.environb", "os.getenv")
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {a.name for a in node.names} & ENVIRONMENT)
        for node in ast.walk(ast.parse(source))
    )


ENVIRONMENT = {"environ", "environb", "getenv"}


def may_read_environment(path: Path) -> bool:
    place = path.relative_to(ROOT).as_posix()
    return any(place.startswith(one) or path.name == one for one in MAY_READ_ENVIRONMENT)


def test_the_environment_is_read_at_the_border_only() -> None:
    readers = [path for path in modules() if reads_environment(path.read_text())]
    assert readers, "nobody reads the environment: the test looks for the wrong thing"
    assert [path for path in readers if not may_read_environment(path)] == []


@pytest.mark.parametrize(
    "source", ["import os\nos.environ['A']", "import os\nos.getenv('A')", "from os import environ"]
)
def test_reading_the_environment_is_noticed(source: str) -> None:
    assert reads_environment(source)


def test_a_module_is_at_most_400_lines() -> None:
    sizes = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in modules()}
    assert {place: size for place, size in sizes.items() if size > MAX_LINES} == {}


def test_the_namespace_has_no_init() -> None:
    """A facade in one root would hide the other roots from type checkers and import-linter."""
    assert [root for root in roots() if (ROOT / root / "distroml" / "__init__.py").exists()] == []


def test_no_module_stands_in_two_roots() -> None:
    names = [name_of(path) for path in modules(generated=True)]
    assert len(names) == len(set(names))


def test_every_list_of_roots_names_the_folders() -> None:
    found, config = set(roots()), pyproject()["tool"]
    build = config["hatch"]["build"]
    # A root may be listed before it has its first module.
    assert found <= set(build["dev-mode-dirs"])
    assert build["targets"]["wheel"]["packages"] == [f"{root}/distroml" for root in build["dev-mode-dirs"]]
    assert config["pyright"]["extraPaths"] == build["dev-mode-dirs"]
    packages = {f"distroml.{Path(root).name}" for root in found}
    assert set(config["importlinter"]["root_packages"]) == packages
    layered = {
        name.strip()
        for contract in config["importlinter"]["contracts"]
        if contract["id"] == "layers"
        for layer in contract["layers"]
        for name in layer.split("|")
    }
    assert layered == packages
