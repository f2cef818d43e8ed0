"""Reads workers' output files as they grow and hands their lines to telemetry."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from distroml.agent.adapters.processes import write_whole
from distroml.agent.domain.lines import Line, LineCutter
from distroml.api.telemetry.v1 import telemetry_pb2 as pb

READ_BYTES = 256 * 1024
"""Per file and look: a bounded share of the agent's time, about 1 MB/s."""

SKIP_BYTES = 16 << 20
"""A reader that is further behind than this goes on near the end; the lines between are counted as dropped."""

STREAMS = ("stdout", "stderr")


class OutputTail:
    """The output of one process. Offsets are kept in its folder, so a new agent goes on where this one was."""

    def __init__(self, folder: Path, template: pb.LogRecord, add: Callable[[pb.LogRecord], None]) -> None:
        self._folder = folder
        self._template = template
        self._add = add
        saved = _saved(folder)
        self._at = {name: saved.get(name, 0) for name in STREAMS}
        self._cutters = {name: LineCutter(self._at[name]) for name in STREAMS}
        self._stored = dict(saved)
        self.dropped_bytes = 0
        self.grown_at = time.monotonic()

    def look(self) -> bool:
        """Read what is new, a bounded piece; whether there was anything."""
        return any([self._look(name) for name in STREAMS])

    def finish(self) -> None:
        """The process has ended: read the rest and the last line that has no end."""
        while self.look():
            pass
        for name, cutter in self._cutters.items():
            self._hand_over(name, cutter.flush())
        self.save()

    def save(self) -> None:
        """Keep the offsets, where they changed."""
        now = {name: cutter.offset for name, cutter in self._cutters.items()}
        if now != self._stored:
            with contextlib.suppress(OSError):
                write_whole(self._folder / "offsets.json", msgspec.json.encode(now))
                self._stored = now

    def _look(self, name: str) -> bool:
        try:
            with (self._folder / name).open("rb") as file:
                size = file.seek(0, 2)
                behind = size - self._at[name]
                if behind <= 0:
                    return False
                if behind > SKIP_BYTES:
                    self._skip(name, size - READ_BYTES)
                file.seek(self._at[name])
                data = file.read(READ_BYTES)
        except OSError:
            return False
        self._at[name] += len(data)
        self._hand_over(name, self._cutters[name].feed(data))
        self.grown_at = time.monotonic()
        return True

    def _skip(self, name: str, to: int) -> None:
        skipped = to - self._at[name]
        self.dropped_bytes += skipped
        text = f"… {skipped} bytes of output were not shipped; they are in the worker's file on its node"
        self._hand_over(name, [*self._cutters[name].flush(), Line(self._at[name], text)])
        self._at[name] = to
        self._cutters[name] = LineCutter(to)

    def _hand_over(self, name: str, lines: list[Line]) -> None:
        if not lines:
            return
        at_ms = time.time_ns() // 1_000_000
        for line in lines:
            record = pb.LogRecord(stream=name, text=line.text, at_ms=at_ms, offset=line.offset)
            record.MergeFrom(self._template)
            self._add(record)


def _saved(folder: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode((folder / "offsets.json").read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError):
        return {}
