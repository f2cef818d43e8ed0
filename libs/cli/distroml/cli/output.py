"""How results reach the terminal: tables for people, JSON for programs, errors for both."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from distroml.api.scheduler.v1 import jobs_pb2

# Colours and width follow the terminal; a pipe gets plain text.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

STATE_STYLES = {
    "RUNNING": "green",
    "SUCCEEDED": "bold green",
    "FAILED": "bold red",
    "CANCELLED": "dim",
    "QUEUED": "yellow",
    "ADMITTED": "cyan",
    "PAUSED": "magenta",
}


def as_dict(message: Message) -> dict[str, object]:
    """A message as JSON-ready fields under their names in the contract."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False), flush=True)


def print_json_line(value: object) -> None:
    """One JSON document on one line, for streams."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table on stdout, or the sentence `empty` where there is no row.

    Written by hand since a thousand rows are usual here: rich takes 0.4 s to measure and wrap them.
    """
    listed = [[_cell(text) for text in row] for row in rows]
    if not listed:
        out.print(empty)
        return
    widths = [max(len(name), *(len(row[place].text) for row in listed)) for place, name in enumerate(columns)]
    paint = out.is_terminal
    lines = ["  ".join(name.ljust(width) for name, width in zip(columns, widths, strict=True)).rstrip()]
    for row in listed:
        cells = (cell.padded(width, paint) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    print("\n".join(lines))


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    style: str = ""

    def padded(self, width: int, paint: bool) -> str:
        space = " " * (width - len(self.text))
        code = _ANSI.get(self.style) if paint else None
        return f"\x1b[{code}m{self.text}\x1b[0m{space}" if code else self.text + space


_STYLED = re.compile(r"\[([a-z ]+)\](.*)\[/\]")
_ANSI = {
    "green": "32",
    "yellow": "33",
    "magenta": "35",
    "cyan": "36",
    "dim": "2",
    "bold green": "1;32",
    "bold red": "1;31",
}


def _cell(text: str) -> _Cell:
    """A cell's text, and the style where it is marked up as `state_text` does."""
    found = _STYLED.fullmatch(text)
    return _Cell(found[2], found[1]) if found else _Cell(text)


def state_text(name: str) -> str:
    """A state without its enum prefix, coloured."""
    short = name.removeprefix("JOB_STATE_").removeprefix("NODE_STATE_")
    style = STATE_STYLES.get(short)
    return f"[{style}]{short.lower()}[/]" if style else short.lower()


def job_text(state: jobs_pb2.JobState.ValueType, reason: str, message: str) -> str:
    """`queued WaitingForSlots: why`: the state coloured, the rest as it stands; an error may well hold `[/INST]`."""
    said = f" {reason}" * bool(reason) + f": {message}" * bool(message)
    return state_text(jobs_pb2.JobState.Name(state)) + escape(said)


def age(stamp: Timestamp) -> str:
    """How long ago, in the largest fitting unit; empty for an unset time."""
    if not stamp.seconds:
        return ""
    return duration(max(0.0, (datetime.now(UTC) - stamp.ToDatetime(UTC)).total_seconds()))


def duration(seconds: float) -> str:
    """Seconds in words: `9 s`, `3 min 20 s`, `2 h 5 min`, `4 d 1 h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def size(count: int) -> str:
    """Bytes in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def binary_size(count: float) -> str:
    """Bytes in binary units, as memory is counted."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def short_time(seconds: float) -> str:
    """A short time with three figures: `96 µs`, `38.4 ms`, `24.8 s`."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def off(predicted: float, measured: float) -> str:
    """How far a measurement is off: `+13 %`, `4.1 times`; empty where one of them is not known."""
    if not (predicted > 0 and measured > 0):
        return ""
    ratio = measured / predicted
    return f"{ratio:.3g} times" if ratio >= 3 else f"{100 * (ratio - 1):+.0f} %"


@contextmanager
def byte_progress(what: str) -> Generator[Callable[[int, int], None]]:
    """A bar on the terminal's error stream, moved by (bytes done, bytes in all); nothing where it is no terminal."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def fail(message: str, hint: str = "") -> None:
    """An error on stderr: what and why, then what to do."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"  {hint}", file=sys.stderr)
