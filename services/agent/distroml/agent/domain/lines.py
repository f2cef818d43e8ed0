"""Cuts a worker's output into lines of bounded length."""

from __future__ import annotations

from dataclasses import dataclass

MAX_LINE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end; `offset` is where it begins in the file; `cut` bytes of it were left out."""

    offset: int
    text: str
    cut: int = 0


class LineCutter:
    """Feed it the file's bytes in order, from `offset` on; it keeps at most one line of `MAX_LINE_BYTES`."""

    def __init__(self, offset: int = 0) -> None:
        self._start = self._end = offset
        self._head = bytearray()
        self._cut = 0

    @property
    def offset(self) -> int:
        """Where the first line begins that was not given out: begin here after a restart."""
        return self._start

    def feed(self, data: bytes) -> list[Line]:
        """The lines that `data` completes."""
        lines: list[Line] = []
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._add(part)
            self._end += 1
            lines.append(self._take())
        self._add(rest)
        return lines

    def flush(self) -> list[Line]:
        """What was begun and never ended, as a line: for the end of the file."""
        return [self._take()] if self._end > self._start else []

    def _add(self, part: bytes) -> None:
        room = MAX_LINE_BYTES - len(self._head)
        self._head += part[:room]
        self._cut += max(0, len(part) - room)
        self._end += len(part)

    def _take(self) -> Line:
        text = self._head.decode(errors="replace").removesuffix("\r")
        if self._cut:
            text += f" … [{self._cut} bytes of this line left out]"
        line = Line(self._start, text, self._cut)
        self._head.clear()
        self._cut = 0
        self._start = self._end
        return line
