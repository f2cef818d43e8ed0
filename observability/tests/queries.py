"""What a dashboard's file asks for, read from the file alone."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class AskedPanel:
    """A panel: its title, its text, and its queries as they stand in the file."""

    title: str
    text: str
    queries: tuple[str, ...]


def panels(text: str) -> list[AskedPanel]:
    """The panels of a dashboard's file, those within rows among them."""
    found: list[AskedPanel] = []

    def look(entries: list[dict[str, object]]) -> None:
        for entry in entries:
            nested = entry.get("panels")
            if isinstance(nested, list):
                look(nested)
            targets = entry.get("targets")
            if isinstance(targets, list):
                queries = tuple(str(target["expr"]) for target in targets)
                found.append(AskedPanel(str(entry["title"]), str(entry["description"]), queries))

    look(json.loads(text)["panels"])
    return found


def filled(query: str, choices: dict[str, str], interval: str = "1m") -> str:
    """The query as Grafana asks it: choices filled in, everything where nothing was chosen."""
    for name in ("deployment", "job_id", "service"):
        query = query.replace(f"${name}", choices.get(name, ".*"))
    return query.replace("$__rate_interval", interval)
