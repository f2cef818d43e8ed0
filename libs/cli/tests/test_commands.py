"""What every command owes its users, whichever it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import typer

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli.following import STEPS_EVERY_S, Pace
from distroml.cli.main import app


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The tree's leaves by their words. Typer's classes are its own: what they have in common with click's is used."""
    if hasattr(group, "commands"):
        for name, command in group.commands.items():
            yield from commands(command, (*path, name))
    else:
        yield " ".join(path), group


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_every_command_speaks_to_programs_and_says_what_it_does() -> None:
    assert {"run", "demo", "job watch", "checkpoints verify", "history rebuild", "bench comm"} <= COMMANDS.keys()
    without = [
        name for name, command in COMMANDS.items() if not any("--json" in option.opts for option in command.params)
    ]
    assert not without
    assert not [name for name, command in COMMANDS.items() if not command.help]


def test_the_shell_completes_commands() -> None:
    asked = {"_DISTROML_COMPLETE": "complete_bash", "COMP_WORDS": "distroml job pr", "COMP_CWORD": "2"}
    program = "from distroml.cli.main import app; app(prog_name='distroml')"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["priority"], done.stderr


def test_how_far_a_job_is_and_how_long_it_takes_is_told_now_and_then() -> None:
    def job(step: int, total: int = 200, generation: int = 1, state: str = "RUNNING") -> jobs_pb2.Job:
        progress = jobs_pb2.Progress(step=step, total_steps=total)
        return jobs_pb2.Job(state=f"JOB_STATE_{state}", generation=generation, progress=progress)

    pace = Pace()
    assert pace.line(job(0), 100.0) == ""
    assert pace.line(job(10, state="PAUSING"), 100.0) == ""
    assert pace.line(job(20), 100.0) == "step 20 of 200"
    assert pace.line(job(30), 100.0 + STEPS_EVERY_S / 2) == ""
    assert pace.line(job(40), 110.0) == "step 40 of 200, about 1 min 20 s left"
    # A new generation begins behind where the old one was, and has a pace of its own.
    assert pace.line(job(30, generation=2), 120.0) == "step 30 of 200"
    assert pace.line(job(115, generation=2), 205.0) == "step 115 of 200, about 1 min 25 s left"
    assert Pace().line(job(7, total=0), 0.0) == "step 7"
