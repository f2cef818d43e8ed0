"""Reads workers' output files as they grow and hands on as many of their lines as may be shipped.

Every line of a file is handed on or counted as limited, exactly one of the two. What is kept is how far lines have
arrived, not how far they were read: who goes on from there hands those between on once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Protocol

import msgspec

from distroml.agent.adapters.delivery import Delivery, Tell, Through
from distroml.agent.adapters.processes import write_whole
from distroml.agent.domain.lines import LineCutter, Piece
from distroml.api.telemetry.v1 import telemetry_pb2 as pb
from distroml.logstore import MAX_BLOCK_LINES, Block

READ_BYTES = 256 * 1024
"""Per file and look: a bounded share of the agent's time."""

SKIP_BYTES = 16 << 20
"""A reader that is further behind than this goes on near the end; the lines between are counted as limited."""

LEFT_BYTES = 4 << 20
"""How much of the end it then reads: some seconds of what may be shipped."""

STREAMS = ("stdout", "stderr")
_COUNT_BYTES = 1 << 20


class Shipping(Protocol):
    """Where lines go, and how many may."""

    @property
    def off(self) -> bool:
        """Whether none ever may: files are then not read, and nothing is counted."""
        ...

    def add(self, block: Block, through: Through) -> None:
        """Take some lines, at most `MAX_BLOCK_LINES`; never waits. `through` is called when they have arrived."""
        ...

    def allow(self, wanted: int) -> int:
        """How many of the wanted bytes may be read now; they count as read."""
        ...

    def owe(self, spent: int) -> None:
        """Bytes that were read without having been allowed."""
        ...

    def limited(self, lines: int, note: Block, through: Through) -> None:
        """Lines that were passed over, and a line that says so where they would stand; `through` as in `add`."""
        ...


class OutputTail:
    """The output of one process. Offsets are kept in its folder, so a new agent goes on where lines have arrived."""

    def __init__(
        self,
        folder: Path,
        template: pb.LogRecord,
        shipping: Shipping,
        tell: Callable[[str], Tell],
        arrived: Mapping[str, int] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            folder: of the files.
            template: what all lines have in common.
            shipping: where they go.
            tell: for a stream, whom to tell of lines that arrived.
            arrived: how far streams had arrived when that was told last, where it may be further than what was kept.
        """
        self._folder = folder
        self._template = template
        self._shipping = shipping
        saved = _saved(folder)
        self._at = {name: max(saved.get(name, 0), (arrived or {}).get(name, 0)) for name in STREAMS}
        self._deliveries = {name: Delivery(self._at[name], tell(name)) for name in STREAMS}
        self._sizes = dict(self._at)
        self._cutters = {name: LineCutter(self._at[name]) for name in STREAMS}
        self._stored = dict(saved)
        self.grown_at = time.monotonic()

    @property
    def arrived(self) -> bool:
        """Whether all that was read has."""
        return all(delivery.through for delivery in self._deliveries.values())

    def place(self, rank: int, generation: int) -> None:
        """Lines from now on are of this place."""
        self._template.rank, self._template.generation = rank, generation

    def look(self) -> bool:
        """Read what is new, as much as is allowed and a bounded piece; whether there was anything to be read."""
        read = False
        for name in STREAMS:
            with contextlib.suppress(OSError), (self._folder / name).open("rb") as file:
                read = self._look(name, file) or read
        return read

    async def finish(self) -> None:
        """The process has ended: read the rest, the last line included that has no end.

        Of a rest that is larger than what is allowed the end is read: it says why. It has not arrived by then.
        """
        if self._shipping.off:
            return
        for name in STREAMS:
            with contextlib.suppress(OSError), (self._folder / name).open("rb") as file:
                behind = file.seek(0, 2) - self._at[name]
                granted = self._shipping.allow(behind) if behind else 0
                if granted < behind and behind > READ_BYTES:
                    self._skip(name, file, max(granted, READ_BYTES))
                self._shipping.owe(max(0, min(behind, READ_BYTES) - granted))
                file.seek(self._at[name])
                while data := file.read(READ_BYTES):
                    self._read(name, data)
                    # Seconds' worth of output may be left, and others have something to do.
                    await asyncio.sleep(0)
            self._hand_over(name, self._cutters[name].flush())

    def save(self) -> None:
        """Keep how far lines have arrived, where that changed."""
        now = {name: delivery.at for name, delivery in self._deliveries.items()}
        if now != self._stored:
            with contextlib.suppress(OSError):
                write_whole(self._folder / "offsets.json", msgspec.json.encode(now))
                self._stored = now

    def _look(self, name: str, file: BufferedReader) -> bool:
        size = file.seek(0, 2)
        if size != self._sizes[name]:
            self._sizes[name] = size
            self.grown_at = time.monotonic()
        if self._shipping.off:
            return False
        if size - self._at[name] > SKIP_BYTES:
            self._skip(name, file, LEFT_BYTES)
        allowed = self._shipping.allow(min(READ_BYTES, size - self._at[name])) if size > self._at[name] else 0
        if allowed:
            file.seek(self._at[name])
            self._read(name, file.read(allowed))
        return allowed > 0

    def _read(self, name: str, data: bytes) -> None:
        self._at[name] += len(data)
        self._hand_over(name, self._cutters[name].feed(data))

    def _skip(self, name: str, file: BufferedReader, leave: int) -> None:
        """Pass over whole lines, until about `leave` bytes are left before the end of the file."""
        start = self._cutters[name].offset
        to = file.seek(0, 2) - leave
        at, lines = file.seek(start), 0
        room = bytearray(_COUNT_BYTES)
        while at < to and (got := file.readinto(memoryview(room)[: to - at])):
            lines += room.count(b"\n", 0, got)
            at += got
        # On to the beginning of a line, unless there is none near.
        rest = file.read(READ_BYTES)
        if (end := rest.find(b"\n")) >= 0:
            at, lines = at + end + 1, lines + 1
        text = f"… {lines} lines ({at - start} bytes) were not shipped; they are in the worker's file on its node\n"
        through = self._deliveries[name].handed(at, at - start)
        self._shipping.limited(lines, self._block(name, start, text.encode()), through)
        self._at[name] = at
        self._cutters[name] = LineCutter(at)

    def _hand_over(self, name: str, pieces: list[Piece]) -> None:
        ends = [*(piece.offset for piece in pieces[1:]), self._cutters[name].offset]
        for piece, end in zip(pieces, ends, strict=False):
            offset = piece.offset
            parts = _few_at_a_time(piece.data)
            for left, data in zip(reversed(range(len(parts))), parts, strict=True):
                # A line that was cut is longer in the file than what is handed on of it.
                to = offset + len(data) if left else end
                self._shipping.add(self._block(name, offset, data), self._deliveries[name].handed(to))
                offset = to

    def _block(self, name: str, offset: int, data: bytes) -> Block:
        of = self._template
        return Block(
            job=of.job,
            worker=of.worker,
            incarnation=of.incarnation,
            stream=name,
            rank=of.rank,
            generation=of.generation,
            attempt=of.attempt,
            at_ms=time.time_ns() // 1_000_000,
            trace_id=of.trace_id,
            offset=offset,
            data=data,
        )


def _few_at_a_time(lines: bytes) -> list[bytes]:
    """The same in parts of at most `MAX_BLOCK_LINES` lines."""
    if lines.count(b"\n") <= MAX_BLOCK_LINES:
        return [lines]
    each = lines.split(b"\n")[:-1]
    return [b"\n".join([*each[at : at + MAX_BLOCK_LINES], b""]) for at in range(0, len(each), MAX_BLOCK_LINES)]


def _saved(folder: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode((folder / "offsets.json").read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError):
        return {}
