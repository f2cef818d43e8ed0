"""Cuts a worker's output into pieces of whole lines of bounded length."""

from __future__ import annotations

from dataclasses import dataclass

MAX_LINE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines, each with its end; `offset` is where the first begins in the file.

    One that was cut is a piece by itself: it says how many bytes of it were left out.
    """

    offset: int
    data: bytes


class LineCutter:
    """Feed it the file's bytes in order, from `offset` on; it keeps at most one line of `MAX_LINE_BYTES`."""

    def __init__(self, offset: int = 0) -> None:
        self._start = offset
        self._head = b""
        self._cut = 0

    @property
    def offset(self) -> int:
        """Where the first line begins that was not given out: begin here after a restart."""
        return self._start

    def feed(self, data: bytes) -> list[Piece]:
        """The lines that `data` completes."""
        pieces: list[Piece] = []
        at = 0
        if self._cut:
            end = data.find(b"\n")
            if end < 0:
                self._cut += len(data)
                return []
            self._cut += end
            pieces.append(self._take(ended=True))
            at = end + 1
        elif self._head:
            data = self._head + data
        return pieces + self._whole(data, at)

    def flush(self) -> list[Piece]:
        """What was begun and never ended, as a line: for the end of the file."""
        return [self._take(ended=False)] if self._head else []

    def _whole(self, data: bytes, at: int) -> list[Piece]:
        """The lines of `data`, whose first begins at `at`; the last one, if it has no end, is kept."""
        pieces: list[Piece] = []
        self._head, first = b"", at
        while True:
            # As many lines as end before the bound: no line of them is too long.
            end = data.rfind(b"\n", at, at + MAX_LINE_BYTES + 1)
            if end >= 0:
                at = end + 1
                continue
            if at > first:
                pieces.append(Piece(self._start, data[first:at]))
                self._start += at - first
            self._head = data[at : at + MAX_LINE_BYTES]
            if len(data) - at <= MAX_LINE_BYTES:
                return pieces
            end = data.find(b"\n", at + MAX_LINE_BYTES)
            self._cut = (end if end >= 0 else len(data)) - at - MAX_LINE_BYTES
            if end < 0:
                return pieces
            pieces.append(self._take(ended=True))
            first = at = end + 1

    def _take(self, *, ended: bool) -> Piece:
        text = self._head
        if self._cut:
            text = text.removesuffix(b"\r") + f" … [{self._cut} bytes of this line left out]".encode()
        piece = Piece(self._start, text + b"\n")
        self._start += len(self._head) + self._cut + ended
        self._head, self._cut = b"", 0
        return piece
