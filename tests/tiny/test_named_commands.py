"""Whatever tells a person what to run names a command that there is, with options that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from distroml.cli.main import app
from tests.architecture.repository import ROOT

ROOT_COMMAND: Any = typer.main.get_command(app)
# What follows belongs to the script.
SCRIPT = re.compile(r".*\.py|-m|--")
IN_TEXT = re.compile(r"`distroml ([a-z-][^`\n]*)`")
IN_BLOCK = re.compile(r"^(?:\$ )?distroml ([^\n#|]*)", re.MULTILINE)
BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)


def texts() -> Iterator[tuple[str, str]]:
    """Each named command's words, and where they stand."""
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "libs/**/*.py", "services/**/*.py", "services/*/*.md"):
        for path in ROOT.glob(pattern):
            if "tests" in path.parts or path.name == "CHANGELOG.md":
                continue
            text = path.read_text("utf-8")
            named = IN_TEXT.findall(text)
            if path.suffix == ".md":
                named += [line for block in BLOCK.findall(text) for line in IN_BLOCK.findall(block)]
            yield from ((words, str(path.relative_to(ROOT))) for words in named)


def mistake(text: str) -> str:
    """What is wrong with a command line without its `distroml`; "" where nothing is."""
    command = ROOT_COMMAND
    for word in text.split():
        inner = getattr(command, "commands", None)
        if word.startswith("--") and word != "--":
            option = word.partition("=")[0]
            if not any(option in param.opts for param in command.params):
                return f"{command.name} has no option {option}"
        elif inner is None:
            if SCRIPT.fullmatch(word) and command.name in ("run", "submit"):
                return ""
        elif word in inner:
            command = inner[word]
        elif not word.startswith("-"):
            return f"{command.name} has no command {word}"
    return f"{command.name} wants a command" if hasattr(command, "commands") and "--" not in text else ""


def test_every_command_that_is_named_is_one() -> None:
    found = list(texts())
    assert len(found) > 100
    assert [f"{where}: distroml {words}: {wrong}" for words, where in found if (wrong := mistake(words))] == []


@pytest.mark.parametrize(
    "words", ["job events JOB", "checkpoints JOB", "checkpoints", "jobs --everything", "frobnicate"]
)
def test_what_is_no_command_is_noticed(words: str) -> None:
    assert mistake(words)
