"""Devices known by name: peak figures as their makers publish them (dense, without sparsity), and efficiencies.

The efficiencies are physics, not settings: one set per architecture, taken over all published measurements at hand
(`benchmarks/planner_tables.py` prints how well they do, and how errors change when a table is left out).
"""

from __future__ import annotations

import difflib
from dataclasses import replace

from distroml.planner.plan import PlanRefused
from distroml.planner.topology import Device

_GIB = float(1 << 30)
_LINKS = {"node": 0.74, "cluster": 0.7}


def _gpu(name: str, *, half: float, fp32: float, fp64: float, gib: float, gb_per_s: float, base: Device) -> Device:
    flops = {"bf16": half * 1e12, "fp16": half * 1e12, "fp32": fp32 * 1e12, "fp64": fp64 * 1e12}
    return replace(base, name=name, flops=flops, memory_bytes=gib * _GIB, memory_bytes_per_s=gb_per_s * 1e9)


def _architecture(matmul: float, memory: float, attention: float, *, flash: bool) -> Device:
    return Device(
        name="",
        flops={"fp32": 1.0},
        memory_bytes=1.0,
        memory_bytes_per_s=1.0,
        matmul_efficiency=matmul,
        memory_efficiency=memory,
        attention_efficiency=attention,
        kernel_s=4e-6,
        link_efficiency=_LINKS,
        # Measured steps gain little from overlap: an exchange's kernels take processors and memory traffic from what
        # they hide behind.
        overlap=0.1,
        # The context, the communicators' buffers and the library workspaces of one process.
        reserved_bytes=1.0 * _GIB,
        flash=flash,
    )


_VOLTA = _architecture(0.8, 0.7, 0.4, flash=False)
_AMPERE = _architecture(0.895, 0.705, 0.55, flash=False)
_ADA = _architecture(0.8, 0.7, 0.5, flash=True)
# Hopper and later lower their clocks under a full load of matrix products.
_HOPPER = _architecture(0.77, 0.7, 0.31, flash=True)
_BLACKWELL = _architecture(0.77, 0.7, 0.31, flash=True)

_GPUS = {
    device.name: device
    for device in (
        _gpu("V100-16GB", half=125, fp32=15.7, fp64=7.8, gib=16, gb_per_s=900, base=_VOLTA),
        _gpu("V100-32GB", half=125, fp32=15.7, fp64=7.8, gib=32, gb_per_s=900, base=_VOLTA),
        _gpu("T4", half=65, fp32=8.1, fp64=0.25, gib=15, gb_per_s=300, base=_VOLTA),
        _gpu("A10", half=125, fp32=31.2, fp64=0.49, gib=22.5, gb_per_s=600, base=_AMPERE),
        _gpu("A100-40GB", half=312, fp32=19.5, fp64=19.5, gib=40, gb_per_s=1555, base=_AMPERE),
        _gpu("A100-80GB", half=312, fp32=19.5, fp64=19.5, gib=80, gb_per_s=2039, base=_AMPERE),
        _gpu("L4", half=121, fp32=30.3, fp64=0.47, gib=22.5, gb_per_s=300, base=_ADA),
        _gpu("L40S", half=362, fp32=91.6, fp64=1.43, gib=45, gb_per_s=864, base=_ADA),
        _gpu("H100", half=989.4, fp32=66.9, fp64=66.9, gib=80, gb_per_s=3352, base=_HOPPER),
        _gpu("H200", half=989.4, fp32=66.9, fp64=66.9, gib=141, gb_per_s=4800, base=_HOPPER),
        _gpu("B200", half=2250, fp32=75, fp64=37, gib=180, gb_per_s=7700, base=_BLACKWELL),
    )
}
_OTHER_NAMES = {"V100": "V100-32GB", "A100": "A100-80GB", "H100-80GB": "H100", "H200-141GB": "H200"}


def _key(name: str) -> str:
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    for noise in ("nvidia", "tesla", "sxm5", "sxm4", "sxm2", "sxm", "hbm3", "pcie"):
        plain = plain.replace(noise, "")
    return plain


_BY_KEY = {
    **{_key(name): device for name, device in _GPUS.items()},
    **{_key(other): _GPUS[name] for other, name in _OTHER_NAMES.items()},
}


def gpu_names() -> tuple[str, ...]:
    """The names that `gpu` knows."""
    return tuple(_GPUS)


def gpu(name: str) -> Device:
    """The device of that name, whatever its capitals, dashes and maker ("NVIDIA H100 80GB HBM3" is "H100").

    Raises:
        PlanRefused: no such device is known; the message names the nearest.
    """
    if device := _BY_KEY.get(_key(name)):
        return device
    near = difflib.get_close_matches(_key(name), _BY_KEY, n=1)
    hint = f"did you mean {_BY_KEY[near[0]].name}? " if near else ""
    raise PlanRefused(
        f"no GPU named {name!r} is known: {hint}Known are {', '.join(_GPUS)}; any other is described in numbers: "
        "{tflops, memory_gib, memory_gb_per_s}"
    )


def custom_gpu(*, tflops: float, memory_gib: float, memory_gb_per_s: float) -> Device:
    """A device from three figures: half-precision peak, memory and its rate; efficiencies as of recent GPUs."""
    return _gpu(
        f"{tflops:g} TFLOP/s",
        half=tflops,
        fp32=tflops / 16,
        fp64=tflops / 16,
        gib=memory_gib,
        gb_per_s=memory_gb_per_s,
        base=_AMPERE,
    )
