"""Lines as they were read, many at once: what they have in common is said once, and looked for in all of them at once.

Ten thousand lines a second shall cost the ranks beside them nothing: whatever Python does for each line costs more than
all that it has done to their bytes together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, TypeAlias

from distroml.logstore.ids import ids_of, none_names_ids
from distroml.logstore.levels import level_of, none_names_a_level
from distroml.logstore.port import Line

MAX_BLOCK_LINES: Final = 4096

Said: TypeAlias = tuple[str, str, str]
"""Level, trace and span that a line names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Lines of one process that follow one another in its file, each with its end.

    What is no UTF-8 reads as U+FFFD; a carriage return before a line's end is none of it.

    Attributes:
        count: how many lines.
    """

    job: str
    worker: str
    incarnation: int
    stream: str
    rank: int
    generation: int
    attempt: int = 0
    at_ms: int
    trace_id: str = ""
    """Of lines that name none."""
    offset: int
    """Where the first line begins in the file of its stream."""
    data: bytes
    count: int = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # Asked for at each station: counted once.
        object.__setattr__(self, "count", self.data.count(b"\n"))

    @property
    def id(self) -> str:
        """What the ids of its lines begin with; each ends in the line's offset."""
        return f"{self.job}/{self.worker}/{self.incarnation}/{self.stream}/"

    def offsets(self) -> Iterator[int]:
        """Where each line begins."""
        at = self.offset
        for line in self.data.split(b"\n"):
            yield at
            at += len(line) + 1

    def texts(self) -> list[str]:
        """Each line without its end."""
        return self.data.decode(errors="replace").replace("\r\n", "\n").split("\n")[:-1]

    def said(self) -> list[Said] | repeat[Said]:
        """What each line says of itself; where none says anything, the same without end."""
        no_level, no_ids = none_names_a_level(self.data), none_names_ids(self.data)
        if no_level and no_ids:
            return repeat(("", self.trace_id, ""))
        texts = self.texts()
        levels = repeat("") if no_level else map(level_of, texts)
        ids = repeat(("", "")) if no_ids else map(ids_of, texts)
        own = self.trace_id
        return [(level, trace or own, span) for _, level, (trace, span) in zip(texts, levels, ids, strict=False)]

    def each(self) -> Iterator[tuple[int, str, Said]]:
        """Where a line begins, what it is, and what it says of itself."""
        return zip(self.offsets(), self.texts(), self.said(), strict=False)

    def lines(self) -> list[Line]:
        """One by one."""
        return [
            Line(
                job=self.job,
                worker=self.worker,
                incarnation=self.incarnation,
                stream=self.stream,
                rank=self.rank,
                generation=self.generation,
                attempt=self.attempt,
                at_ms=self.at_ms,
                offset=offset,
                text=text,
                level=level,
                trace_id=trace,
                span_id=span,
            )
            for offset, text, (level, trace, span) in self.each()
        ]
