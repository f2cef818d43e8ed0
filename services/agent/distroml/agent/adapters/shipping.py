"""Workers' lines on their way out of the node: to telemetry, and to the log store where there is one.

What a node ships is bounded by bytes per second, before any server is asked: a loud rank costs neither the network nor
the other ranks' steps anything, and its file keeps every line.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from distroml.agent.adapters.delivery import BothWays, Tell, Through
from distroml.agent.adapters.telemetry import TelemetryPush
from distroml.agent.domain.allowance import Allowance
from distroml.logstore import Block
from distroml.observability import logger, metrics, names

log = logger(__name__)

REPORT_S = 60.0
LIMITED = "limited"

LINES = metrics.counter(
    names.AGENT_LOG_LINES,
    "Lines of workers by what became of them: of those that were read, those that the log store has (shipped), had no "
    "room for while it was away (full) or never takes (refused); and those past the node's limit (limited).",
    [names.LABEL_OUTCOME],
)
LIMITED_BYTES = metrics.counter(names.AGENT_LOG_BYTES_LIMITED, "Bytes of the lines past the node's limit.")


class Sink(Protocol):
    """What a log store's shipper does; see `distroml.logstore.elastic.Shipper`."""

    def add(self, block: Block, count: Callable[[str, int], None]) -> None:
        """Take some lines, and tell of each what became of it; never waits."""
        ...


class Count(Protocol):
    """Told an outcome, how many lines met it, and the bytes of those past the limit."""

    def __call__(self, outcome: str, lines: int, limited_bytes: int = 0) -> None:
        """Count them."""
        ...


def counting(count: Count) -> Callable[[str], Tell]:
    """For each stream of a tail, what counts the lines that arrived and keeps nothing else."""

    def tell(at: int, counts: Mapping[str, int], limited_bytes: int) -> None:
        del at
        for outcome, lines in counts.items():
            count(outcome, lines, limited_bytes if outcome == LIMITED else 0)

    return lambda stream: tell


class LineCounts:
    """What became of this node's lines: counted in metrics, and said in the log where not all were shipped."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._missed: Counter[str] = Counter()
        self._missed_bytes = 0

    def count(self, outcome: str, lines: int, limited_bytes: int = 0) -> None:
        """See `Count`."""
        LINES.labels(outcome).inc(lines)
        LIMITED_BYTES.inc(limited_bytes)
        if outcome != "shipped":
            self._missed[outcome] += lines
            self._missed_bytes += limited_bytes

    async def report(self) -> None:
        """Say once a minute what was not shipped, until cancelled."""
        while True:
            await asyncio.sleep(REPORT_S)
            self.tell()

    def tell(self) -> None:
        """Say what was not shipped since the last time; nothing where all was."""
        if not self._missed:
            return
        missed, self._missed, size, self._missed_bytes = self._missed, Counter(), self._missed_bytes, 0
        log.warning(
            "lines of workers were not shipped; they are in the workers' files",
            limit_bytes_per_s=self._bytes_per_s,
            limited_bytes=size,
            **{f"{outcome}_lines": lines for outcome, lines in missed.items()},
        )


class LineShipping:
    """See `output.Shipping`. One per node."""

    def __init__(self, telemetry: TelemetryPush, *, bytes_per_s: int) -> None:
        self._telemetry = telemetry
        self._allowance = Allowance(bytes_per_s, time.monotonic())
        self._bytes_per_s = bytes_per_s
        self.store: Sink | None = None
        """Where lines go besides telemetry."""
        self.readers = 0
        """How many files are read in turn."""

    @property
    def off(self) -> bool:
        """See `Shipping`."""
        return not self._bytes_per_s

    def add(self, block: Block, through: Through) -> None:
        """See `Shipping`."""
        ways = BothWays(0 if self.store is None else block.count, through)
        if self.store is not None:
            self.store.add(block, ways.count)
        self._telemetry.add_lines(block, ways.read_along)

    def allow(self, wanted: int) -> int:
        """See `Shipping`."""
        if not self._telemetry.room_for_lines:
            return 0
        return self._allowance.take(wanted, time.monotonic(), readers=self.readers)

    def owe(self, spent: int) -> None:
        """See `Shipping`."""
        self._allowance.owe(spent, time.monotonic())

    def limited(self, lines: int, note: Block, through: Through) -> None:
        """See `Shipping`. Only whoever reads along sees the note: a store holds what was written."""
        self._telemetry.add_lines(note, lambda: through({LIMITED: lines}))
        self._telemetry.dropped_lines += lines
