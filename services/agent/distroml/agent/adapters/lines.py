"""Workers' lines leave the node from a process of their own that stands back behind training; the agent tells it which.

`python -m distroml.agent.shipper` reads the files, so what becomes of ten thousand lines a second costs the ranks only
what they leave of the CPUs, and the agent's event loop nothing. The two speak JSON lines over its standard input and
output; the end of the agent is the end of its input, after which it hands over what it has and ends. One that dies is
started again and goes on where lines had arrived, as it told last: a line that is sent twice is kept once, and counted
once, for what became of lines is told with how far they have arrived.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import msgspec

from distroml.agent.adapters.output import STREAMS, OutputTail
from distroml.agent.adapters.shipping import Count, LineShipping, counting
from distroml.api.telemetry.v1 import telemetry_pb2 as pb

FINISH_S: Final = 5.0
"""How long the end of a worker waits for its last lines to be on their way."""

STOP_S: Final = 6.0
"""How long the process may take to hand over what it has: longer than it takes by itself."""

ENCODE: Final = msgspec.json.Encoder().encode


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """Read the files of this folder; `record` is what all of their lines have in common."""

    folder: str
    record: bytes
    arrived: dict[str, int] = {}
    """Up to where lines of each stream need not be read, as far as the agent knows."""


class Place(msgspec.Struct, frozen=True, tag="place"):
    """Lines from now on are of this place."""

    folder: str
    rank: int
    generation: int


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """Nothing more is written in this folder: read the rest, and say `Finished`."""

    folder: str


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """All lines of a folder are on their way, or counted."""

    folder: str


class Arrived(msgspec.Struct, frozen=True, tag="arrived"):
    """Up to there lines of a folder have arrived, by stream, and what became of those since the last word."""

    folder: str
    at: dict[str, int]
    counts: dict[str, int]
    limited_bytes: int = 0


class Delivered(msgspec.Struct, frozen=True, tag="delivered"):
    """All lines of a folder that was finished have arrived: nobody needs to read it again."""

    folder: str


class Trouble(msgspec.Struct, frozen=True, tag="trouble"):
    """Why the log store does not take lines; None as soon as it does."""

    why: str | None


Order: TypeAlias = Follow | Place | Finish
Word: TypeAlias = Finished | Arrived | Delivered | Trouble
_DECODE: Final = msgspec.json.Decoder(Word).decode


class Tail(Protocol):
    """The output of one process, followed."""

    @property
    def grown_at(self) -> float:
        """When there last was more of it, monotonic seconds."""
        ...

    def place(self, rank: int, generation: int) -> None:
        """Lines from now on are of this place."""
        ...

    def look(self) -> object:
        """Several times a second."""
        ...

    def save(self) -> None:
        """Keep how far it was read."""
        ...

    async def finish(self) -> None:
        """The process has ended: read the rest."""
        ...


class Lines(Protocol):
    """Follows the output of this node's workers."""

    def follow(self, folder: Path, record: pb.LogRecord) -> Tail:
        """Read what is written in `folder` from now on, until the tail's `finish`."""
        ...


class LinesHere:
    """In this process: where nothing is shipped, and in tests."""

    def __init__(self, shipping: LineShipping, count: Count) -> None:
        self._shipping, self._count = shipping, count

    def follow(self, folder: Path, record: pb.LogRecord) -> Tail:
        """See `Lines`."""
        return _Counted(folder, record, self._shipping, self._count)


class ShipperEnded(Exception):
    """The process has ended by itself."""


class LinesApart:
    """In a process of its own, for as long as `run` runs."""

    def __init__(self, *, count: Count, tell: Callable[[str | None], None]) -> None:
        """Nothing is started yet; `tell` is told what keeps the log store from taking lines."""
        self._count, self._tell = count, tell
        self._tails: dict[str, _Remote] = {}
        self._process: Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        """Of the process, 0 where there is none."""
        return self._process.pid if self._process is not None else 0

    def follow(self, folder: Path, record: pb.LogRecord) -> Tail:
        """See `Lines`."""
        tail = self._tails[str(folder)] = _Remote(folder, record, self._send)
        self._send(tail.order)
        return tail

    async def run(self) -> None:
        """Have the process until `stop`; raises `ShipperEnded`."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "distroml.agent.shipper"),
            stdin=PIPE,
            stdout=PIPE,
            # A key pressed at the agent's terminal is for the agent, which tells it in its turn.
            start_new_session=True,
        )
        assert process.stdout is not None
        self._process = process
        try:
            for order in self.orders():
                self._send(order)
            async for line in process.stdout:
                # It may be killed in the middle of a word, which then was not said.
                if line.endswith(b"\n"):
                    self.heard(_DECODE(line))
            code = await process.wait()
        finally:
            self._process = None
            if process.returncode is None:
                process.kill()
                await process.wait()
        if not self._stopping:
            raise ShipperEnded(f"the process that ships lines ended with status {code}; lines wait in their files")

    async def stop(self) -> None:
        """Let it hand over what it has and end."""
        self._stopping = True
        process = self._process
        if process is None or process.stdin is None:
            return
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await process.wait()

    def _send(self, order: Order) -> None:
        process = self._process
        if process is not None and process.stdin is not None and not process.stdin.is_closing():
            process.stdin.write(ENCODE(order) + b"\n")

    def orders(self) -> list[Order]:
        """What a new process is to be told."""
        return [order for tail in self._tails.values() for order in tail.orders()]

    def heard(self, word: Word) -> None:
        """The process says something."""
        match word:
            case Finished(folder):
                if (tail := self._tails.get(folder)) is not None:
                    tail.finished.set()
            case Arrived(folder, at, counts, limited_bytes):
                if (tail := self._tails.get(folder)) is not None:
                    tail.arrived.update(at)
                counting(self._count)(folder)(0, counts, limited_bytes)
            case Delivered(folder):
                self._tails.pop(folder, None)
            case Trouble(why):
                self._tell(why)


class _Remote:
    """A tail in the other process; whether it grows is seen from here."""

    def __init__(self, folder: Path, record: pb.LogRecord, send: Callable[[Order], None]) -> None:
        self._folder, self._record, self._send = folder, record, send
        self._bytes: int = 0
        self._ended = False
        self.arrived: dict[str, int] = {}
        self.finished = asyncio.Event()
        self.grown_at = time.monotonic()

    @property
    def order(self) -> Follow:
        return Follow(str(self._folder), self._record.SerializeToString(), dict(self.arrived))

    def orders(self) -> list[Order]:
        """What a new process is to be told of it."""
        return [self.order, Finish(str(self._folder))] if self._ended else [self.order]

    def place(self, rank: int, generation: int) -> None:
        """See `Tail`."""
        self._record.rank, self._record.generation = rank, generation
        self._send(Place(str(self._folder), rank, generation))

    def look(self) -> None:
        """See `Tail`."""
        size: int = 0
        for name in STREAMS:
            with contextlib.suppress(OSError):
                size += (self._folder / name).stat().st_size
        if size != self._bytes:
            self._bytes, self.grown_at = size, time.monotonic()

    def save(self) -> None:
        """See `Tail`: the process does it, by itself."""

    async def finish(self) -> None:
        """See `Tail`. Back after `FINISH_S` also where the process has not got so far."""
        self._ended = True
        self._send(Finish(str(self._folder)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FINISH_S):
                await self.finished.wait()


class _Counted(OutputTail):
    """One of the readers that share an allowance, for as long as it is not finished."""

    def __init__(self, folder: Path, record: pb.LogRecord, shipping: LineShipping, count: Count) -> None:
        super().__init__(folder, record, shipping, counting(count))
        self._shares = shipping
        shipping.readers += len(STREAMS)

    async def finish(self) -> None:
        """See `Tail`."""
        await super().finish()
        self.save()
        self._shares.readers -= len(STREAMS)
