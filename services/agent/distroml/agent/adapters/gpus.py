"""The NVIDIA GPUs that this node may offer, and how busy each is. Never initialises CUDA.

A process that has CUDA initialised cannot be forked from, and holds memory on each device; so the agent asks NVML, the
driver's own library, and where that is missing reads what the driver lists. Both number GPUs in the order of their PCI
addresses, as `nvidia-smi` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator. `device` is what CUDA_VISIBLE_DEVICES calls it: its number, or the name of a part of one."""

    device: str
    name: str
    uuid: str = ""


class Gpus:
    """What may be offered (`found`), with figures where NVML is there."""

    def __init__(self, nvml: Any, inherited: str | None = None, driver: Path = _DRIVER) -> None:
        """Look for GPUs, once.

        Args:
            nvml: the module `pynvml`, or None where there is none.
            inherited: CUDA_VISIBLE_DEVICES of this process: GPUs that it doesn't name belong to others.
            driver: where the kernel's driver lists GPUs.
        """
        self._nvml: Any = nvml
        try:
            nvml.nvmlInit()
            present = tuple(self._look_up(index) for index in range(int(nvml.nvmlDeviceGetCount())))
        except Exception:  # no library, no driver, no device: each means that there are no figures
            self._nvml = None
            present = _listed_by(driver)
        self.found = visible(present, inherited)

    @classmethod
    def of_machine(cls, inherited: str | None) -> Self:
        """Those of this machine that `inherited` leaves to this process."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            nvml = None
        return cls(nvml, inherited)

    def look(self, device: str) -> tuple[float, int] | None:
        """Share of time in which the GPU worked, and its used bytes; None where nobody knows."""
        if self._nvml is None:
            return None
        try:
            handle = self._handle(device)
            ratio = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            return ratio, int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used)
        except Exception:  # a GPU that fell off the bus has no figures, nor has a part of one
            return None

    def _handle(self, device: str) -> Any:
        if device.isdecimal():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(device))
        return self._nvml.nvmlDeviceGetHandleByUUID(device)

    def _look_up(self, index: int) -> Gpu:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        return Gpu(str(index), _text(self._nvml.nvmlDeviceGetName(handle)), _text(self._nvml.nvmlDeviceGetUUID(handle)))


def visible(present: Iterable[Gpu], inherited: str | None) -> tuple[Gpu, ...]:
    """Those of the GPUs `present` that a CUDA_VISIBLE_DEVICES of `inherited` shows, by CUDA's own rule.

    Entries are numbers, beginnings of UUIDs, or names of MIG parts; what follows an entry that fits nothing is not
    seen (CUDA Programming Guide, appendix on environment variables).
    """
    if inherited is None:
        return tuple(present)
    known, seen = tuple(present), list[Gpu]()
    for entry in (part.strip() for part in inherited.split(",")):
        if entry.startswith("MIG-"):
            fitting = [Gpu(entry, "MIG", entry)]
        elif entry.startswith("GPU-"):
            fitting = [gpu for gpu in known if gpu.uuid.startswith(entry)]
        else:
            fitting = [gpu for gpu in known if gpu.device == entry]
        if len(fitting) != 1 or fitting[0] in seen:
            break
        seen += fitting
    return tuple(seen)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _listed_by(driver: Path) -> tuple[Gpu, ...]:
    """What the kernel driver lists, a folder per PCI address: enough to offer slots, without figures."""
    found: list[Gpu] = []
    for folder in sorted(driver.glob("*")):
        try:
            lines = (folder / "information").read_text().splitlines()
        except OSError:
            continue
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        found.append(Gpu(str(len(found)), facts.get("Model", "GPU"), facts.get("GPU UUID", "")))
    return tuple(found)
