"""`demo`: the whole platform in a few minutes on this machine."""

from __future__ import annotations

import asyncio
import json as jsonlib
import time
from pathlib import Path
from typing import Annotated

import typer

from distroml.cli import output, spec
from distroml.cli.client import open_plane, translated
from distroml.cli.demo import report as reporting
from distroml.cli.demo.report import Facts, Report
from distroml.cli.demo.story import Story
from distroml.cli.demo.view import View
from distroml.cli.errors import EXIT_DONE, EXIT_JOB_FAILED, CliError
from distroml.cli.options import AskedProfile, Json
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder

WORKERS = 2


def demo(
    data: Annotated[
        Path | None, typer.Option("--data", help="Data folder [default: .distroml/demo-… in this folder].")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Training steps; 0 for the example's own number.")] = 0,
    kill_at: Annotated[
        float, typer.Option(min=0.05, max=0.9, help="Kill a worker after this part of the steps.")
    ] = 0.4,
    profile: AskedProfile = None,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave the control plane up at the end.")
    ] = False,
    json: Json = False,
) -> None:
    """Train a small GPT on 2 workers, lose one to kill -9, recover, finish, replay the log.

    Exits 0 only if all of it really happened; the last line names the report. With `--json` the report itself is
    printed, and what happens is told on the error stream.
    """
    folder = DataFolder((data or Path(".distroml") / time.strftime("demo-%Y%m%d-%H%M%S")).absolute())
    began = time.monotonic()
    with View(output.err if json else output.out) as view:
        view.say("starting scheduler, rendezvous, checkpoint, telemetry and agent …")
        endpoints = control.start(folder, slots=WORKERS, profile=profile)
        try:
            view.say(f"dashboard: {endpoints.dashboard}/login?token={folder.token()}")
            facts = translated(lambda: asyncio.run(_run(folder, view, steps, kill_at, began)))
        finally:
            if not keep_running:
                control.stop(folder)
    result = reporting.build(facts)
    file = folder.path / "report.json"
    file.write_text(jsonlib.dumps(result.as_json(), indent=2) + "\n", "utf-8")
    if json:
        output.print_json({**result.as_json(), "report": str(file)})
    else:
        _show(result)
        print(f"report: {file}")
    raise typer.Exit(EXIT_DONE if result.ok else EXIT_JOB_FAILED)


async def _run(folder: DataFolder, view: View, steps: int, kill_at: float, began: float) -> Facts:
    example = find_example("gpt")
    out = folder.path / "out"
    out.mkdir()
    request = spec.from_command(
        [str(example / "train.py"), "--out", str(out), *(["--steps", str(steps)] if steps else [])],
        name="gpt-demo",
        workers=str(WORKERS),
        env=["OMP_NUM_THREADS=1"],
        bundle=example,
        priority=0,
        max_failures=3,
        keep=3,
    )
    async with open_plane(folder.path) as plane:
        return await Story(plane, view, out, kill_at, began).tell(request)


def find_example(name: str) -> Path:
    """The folder of a bundled example: inside the package, or in the source tree.

    Raises:
        CliError: this installation carries no examples.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "examples" / name, here.parents[4] / "examples" / name):
        if (folder / "train.py").is_file():
            return folder
    raise CliError(
        f"the example {name!r} is not part of this installation",
        hint="install DistroML's wheel, or run `distroml demo` from a checkout of its source",
    )


def _show(result: Report) -> None:
    if result.sample:
        output.out.print("\n[bold]a sample of generated text[/]")
        for line in result.sample.splitlines():
            output.out.print(f"  {line}", markup=False)
    output.out.print("\n[bold]what happened[/]")
    for name, text in reporting.rows(result, output.size):
        output.out.print(f"  {name:<14} {text}", markup=False)
    for name, happened in result.checks.items():
        output.out.print(f"  {'[green]yes[/]' if happened else '[bold red]NO [/]'}  {name}")
