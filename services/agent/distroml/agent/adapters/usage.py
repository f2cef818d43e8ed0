"""What a worker uses: CPU time and memory of its process tree."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MOST_PROCESSES = 256


@dataclass(frozen=True, slots=True)
class Usage:
    """One look. `cpu_s` is the time used since the processes began."""

    cpu_s: float
    rss_bytes: int


def usage_of(pid: int) -> Usage:
    """CPU time and resident memory of a process and those below it; zero where it has ended."""
    ticks = pages = 0
    todo, seen = [pid], 0
    while todo and seen < _MOST_PROCESSES:
        seen += 1
        each = todo.pop()
        try:
            fields = Path(f"/proc/{each}/stat").read_bytes().rpartition(b")")[2].split()
            # With the time of ended children that were waited for.
            ticks += sum(int(field) for field in fields[11:15])
            pages += int(fields[21])
            todo += [int(child) for child in Path(f"/proc/{each}/task/{each}/children").read_text().split()]
        except OSError:
            continue
    return Usage(ticks / _TICKS, pages * _PAGE)
