"""Prints what the Tiltfile cannot know by itself, as JSON: what each service runs, and which servers there are.

    {"services": {"scheduler": ["services/scheduler", "libs/api", ...]}, "servers": ["etcd", ...]}

A service runs its own folder and those of the libraries that it imports, or that these import in turn.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

from deploy.stack import registry

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("scheduler", "rendezvous", "checkpoint", "telemetry", "relay", "agent")


def closure(root: Path = ROOT) -> dict[str, list[str]]:
    """Service -> folders below `root`, its own first."""
    homes = {
        part.name: part.parents[1] for part in root.glob("*/*/distroml/*") if part.parts[-4] in ("libs", "services")
    }
    direct = {name: _imported(home / "distroml" / name) & homes.keys() for name, home in homes.items()}
    found: dict[str, list[str]] = {}
    for service in SERVICES:
        waiting, seen = [service], set[str]()
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += direct[name]
        names = [service, *sorted(seen - {service})]
        found[service] = [homes[name].relative_to(root).as_posix() for name in names]
    return found


def _imported(package: Path) -> set[str]:
    """Second words of the names that its modules import from `distroml`."""
    names = [name for file in package.rglob("*.py") for name in _names(ast.parse(file.read_text()))]
    return {name.split(".")[1] for name in names if name.startswith("distroml.")}


def _names(tree: ast.Module) -> list[str]:
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


if __name__ == "__main__":
    print(json.dumps({"services": closure(), "servers": registry.names()}))
