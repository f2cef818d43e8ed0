"""When each rank of a job made its steps, as `jobs/steady.py` writes it down; known without any service."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

_STEP = struct.Struct("<qq")
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

    def _read(self, rank: int) -> list[tuple[int, int]]:
        data = self._file(rank).read_bytes()
        return list(_STEP.iter_unpack(data[: len(data) // _STEP.size * _STEP.size]))

    def _file(self, rank: int) -> Path:
        return self.folder / f"steps-{rank}"
