"""When each rank of a job made its steps, as `jobs/steady.py` writes it down; known without any service."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

_STEP = struct.Struct("<qq")
_NUMBER = struct.Struct("<q")
_NS = 1e9
RANKS = (0, 1)


@dataclass(frozen=True)
class Pace:
    """The steps of both ranks, in files below `folder`."""

    folder: Path

    def made(self) -> dict[int, int]:
        """How many steps each rank has made."""
        files = {rank: self._file(rank) for rank in RANKS}
        return {rank: file.stat().st_size // _STEP.size if file.exists() else 0 for rank, file in files.items()}

    def slowest(self) -> int:
        """How many steps the slowest rank has made."""
        return min(self.made().values())

    def longest_s(self, since: Mapping[int, int]) -> float:
        """The longest time between two steps of a rank, the last one of `since` among them; seconds."""
        times = [[at for at, _ in self._read(rank)[max(0, since[rank] - 1) :]] for rank in RANKS]
        return max((later - at for of_rank in times for at, later in pairwise(of_rank)), default=0) / _NS

    def processes(self, rank: int) -> list[int]:
        """Which processes made the rank's steps, in their order; one that comes back counts again."""
        return [process for process, _ in groupby(process for _, process in self._read(rank))]

    def lost(self) -> int:
        """How many optimizer steps ranks made a second time, since the first was lost, or never."""
        ranks = [[number for (number,) in _whole(_NUMBER, self.folder / f"numbers-{rank}")] for rank in RANKS]
        return sum(_lost(numbers) for numbers in ranks if numbers)

    def _read(self, rank: int) -> list[tuple[int, int]]:
        return [(at, process) for at, process in _whole(_STEP, self._file(rank))]

    def _file(self, rank: int) -> Path:
        return self.folder / f"steps-{rank}"


def _lost(numbers: Sequence[int]) -> int:
    different = len(set(numbers))
    again, never = len(numbers) - different, max(numbers) - min(numbers) + 1 - different
    return again + never


def _whole(form: struct.Struct, file: Path) -> Iterator[tuple[int, ...]]:
    """What was written as a whole; nothing where there is no file yet."""
    data = file.read_bytes() if file.exists() else b""
    return form.iter_unpack(data[: len(data) // form.size * form.size])
