"""What the demo shows while it runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.cli.output import out

_LINE_EVERY_S = 5.0


class View:
    """Progress of the demo's job."""

    def __init__(self, console: Console = out) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("  training"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=console,
            transient=False,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=None, numbers="")
        self._last_line = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> View:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """One line of the story."""
        self._console.print(f"[dim]{time.monotonic() - self._began:6.1f} s[/]  {text}")

    def progress(self, summary: telemetry_pb2.JobSummary) -> None:
        """The newest numbers of the job."""
        if not summary.total_steps:
            return
        loss = f"loss {summary.loss:.3f}" if summary.HasField("loss") else ""
        numbers = f"{loss}  {summary.tokens_per_s:,.0f} tokens/s  generation {summary.generation}"
        self._bar.update(self._task, completed=summary.step, total=summary.total_steps, numbers=numbers)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.say(f"step {summary.step}/{summary.total_steps}  {numbers}")
