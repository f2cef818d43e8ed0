"""How far a file's lines have arrived where they go, in the order of the file, whatever order they arrive in.

What became of lines is told together with how far all are through, and not before. So who goes on from there after a
crash sends no line too few, and counts none twice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Through: TypeAlias = Callable[[Mapping[str, int]], None]
"""To be called once, when some lines are through: how many met which end."""


class Tell(Protocol):
    """Told how far a file is through, how many lines up to there met which end, and bytes that were passed over."""

    def __call__(self, at: int, counts: Mapping[str, int], limited_bytes: int, /) -> None:
        """Keep it."""
        ...


@dataclass(slots=True, eq=False)
class _Handed:
    """Lines that were handed on; `counts` when they are through."""

    end: int
    limited_bytes: int
    counts: Mapping[str, int] | None = None


class Delivery:
    """The lines of one file on their way.

    Attributes:
        at: where in the file the first line begins that is not through.
    """

    def __init__(self, at: int, tell: Tell) -> None:
        self.at = at
        self._tell = tell
        self._under_way: deque[_Handed] = deque()

    @property
    def through(self) -> bool:
        """Whether all that was handed on is."""
        return not self._under_way

    def handed(self, end: int, limited_bytes: int = 0) -> Through:
        """Lines up to `end` are handed on, or passed over with so many bytes; to be told by what it returns."""
        one = _Handed(end, limited_bytes)
        self._under_way.append(one)

        def through(counts: Mapping[str, int]) -> None:
            one.counts = counts
            while self._under_way and (told := self._under_way[0].counts) is not None:
                first = self._under_way.popleft()
                self.at = first.end
                self._tell(first.end, told, first.limited_bytes)

        return through


class BothWays:
    """Some lines until telemetry and the log store are both through with them."""

    def __init__(self, to_store: int, through: Through) -> None:
        """`to_store`: how many of them go to the log store."""
        self._left, self._through = to_store, through
        self._counts: Counter[str] = Counter()
        self._told = False

    def read_along(self) -> None:
        """Telemetry has them, or let go of them."""
        self._told = True
        self._look()

    def count(self, outcome: str, lines: int) -> None:
        """What became of some in the log store."""
        self._counts[outcome] += lines
        self._left -= lines
        self._look()

    def _look(self) -> None:
        if self._told and self._left <= 0:
            self._through(self._counts)
