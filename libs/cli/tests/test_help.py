"""What `--help` says of every command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from distroml.cli.main import app


def _options(command: Any, path: str) -> Iterator[tuple[str, str]]:
    for name, below in getattr(command, "commands", {}).items():
        yield from _options(below, f"{path} {name}")
    context = command.make_context(path, [], resilient_parsing=True)
    for parameter in command.params:
        if record := parameter.get_help_record(context):
            yield f"{path} {record[0]}", record[1]


def test_no_option_tells_of_two_defaults() -> None:
    options = dict(_options(get_command(app), "distroml"))
    assert "distroml checkpoints verify --json" in options
    assert {name: says for name, says in options.items() if says.count("default:") > 1} == {}
