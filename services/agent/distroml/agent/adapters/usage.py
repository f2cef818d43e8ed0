"""What a worker uses: CPU and memory of its process tree, its GPU where NVIDIA's library is there."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator of this machine."""

    index: int
    name: str


class Gpus:
    """NVIDIA GPUs by `pynvml` where it is installed; none otherwise. Never initialises CUDA."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self.found: tuple[Gpu, ...] = ()
        try:
            nvml: Any = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._nvml = nvml
            self.found = tuple(Gpu(index, self._name(index)) for index in range(int(nvml.nvmlDeviceGetCount())))
        except Exception:  # no library, no driver, no device: each means that there is nothing to offer
            self.found = _listed_by_driver()

    def look(self, index: int) -> tuple[float, int] | None:
        """Share of time in which the GPU worked, and its used bytes."""
        if self._nvml is None:
            return None
        try:
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            ratio = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            return ratio, int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used)
        except Exception:  # a GPU that fell off the bus has no figures
            return None

    def _name(self, index: int) -> str:
        name = self._nvml.nvmlDeviceGetName(self._nvml.nvmlDeviceGetHandleByIndex(index))
        return name.decode() if isinstance(name, bytes) else str(name)


def _listed_by_driver() -> tuple[Gpu, ...]:
    """What the kernel driver lists: enough to offer slots, without figures."""
    found: list[Gpu] = []
    for folder in sorted(Path("/proc/driver/nvidia/gpus").glob("*")):
        try:
            lines = (folder / "information").read_text().splitlines()
        except OSError:
            continue
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        found.append(Gpu(len(found), facts.get("Model", "GPU").strip()))
    return tuple(found)
