"""This machine's share of what plans cost, as it shows itself: products, memory traffic, what a step's end takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from distroml.planner import Device
from distroml.runtime.elastic import Collectives, communication
from distroml.runtime.profile.marks import median, now
from distroml.runtime.profile.optimizers import MakeOptimizer
from distroml.runtime.typed import norm_of

_REPEATS = 3
_MATMUL = 512
# Long enough for a scheduler to share processors out.
_CROWD_CALLS = 20
# More of a model than this tells nothing new.
_MOST_ELEMENTS = 20_000_000
_SMALL_TENSORS = 24
_TRAFFIC_BYTES = 32.0


def measure_device(model: nn.Module, collectives: Collectives, optimizer: MakeOptimizer) -> Device:
    """The device as training finds it, all ranks at once. Collective; equal on every rank.

    Args:
        model: as it will be trained; is not changed.
        collectives: of the world.
        optimizer: as in training; makes optimizers of copies.
    """
    device = collectives.world.device
    ranks = collectives.world.world_size
    mesh = None
    if ranks > 1:
        with communication():
            mesh = DeviceMesh(device.type, list(range(ranks)), mesh_dim_names=("all",))
    large = [nn.Parameter(torch.ones(size, device=device)) for size in _sizes(model)]
    elements = sum(one.numel() for one in large)
    found = {
        "whole": _end_s(large, optimizer, device),
        "tensor": _end_s(_small(device, None), optimizer, device) / _SMALL_TENSORS,
        "divided": _end_s(_small(device, mesh), optimizer, device) / _SMALL_TENSORS,
        "copy": _copy_s_per_byte(large, device),
        "matmul": _matmul_s(device),
    }
    slowest = {name: max(told[name] for told in collectives.gather(found)) for name in found}
    moved_s = max(slowest["whole"] - len(large) * slowest["tensor"], 0.1 * slowest["whole"])
    on_gpu = device.type == "cuda"
    return Device(
        name=device.type,
        flops={"fp32": 2.0 * _MATMUL**3 / slowest["matmul"]},
        memory_bytes=min(collectives.gather(_memory_bytes(device, ranks))),
        # As if each parameter had 32 bytes to move, as AdamW must at least; other optimizers show as faster memory.
        memory_bytes_per_s=_TRAFFIC_BYTES * elements / moved_s,
        matmul_efficiency=1.0,
        memory_efficiency=1.0,
        overlap=0.9,
        # Torch's FSDP has no streams to hide behind on a CPU.
        shard_overlap=None if on_gpu else 0.0,
        copy_s_per_byte=slowest["copy"],
        crowd=1.0 if on_gpu else _crowd(collectives),
        tensor_s=slowest["tensor"],
        divided_tensor_s=slowest["divided"],
        on_cpu=not on_gpu,
    )


def _sizes(model: nn.Module) -> list[torch.Size]:
    """Shapes of the first parameters that are not too much together."""
    found: list[torch.Size] = []
    left = _MOST_ELEMENTS
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.numel() <= left:
            found.append(parameter.shape)
            left -= parameter.numel()
    return found or [torch.Size([_MOST_ELEMENTS])]


def _small(device: torch.device, mesh: DeviceMesh | None) -> list[nn.Parameter]:
    """Tensors of which nothing but their number costs time; with `mesh`, parts of larger ones."""
    made = [torch.ones(8, device=device) for _ in range(_SMALL_TENSORS)]
    if mesh is None:
        return [nn.Parameter(one) for one in made]
    return [nn.Parameter(DTensor.from_local(one, mesh, [Shard(0)], run_check=False)) for one in made]


def _end_s(parameters: Sequence[nn.Parameter], optimizer: MakeOptimizer, device: torch.device) -> float:
    """Seconds of a step's end: the norm of all gradients, their scaling, the optimizer."""
    made = optimizer(parameters)
    owns: list[torch.Tensor] = []
    for parameter in parameters:
        gradient = torch.zeros_like(parameter)
        parameter.grad = gradient
        owns.append(gradient.to_local() if isinstance(gradient, DTensor) else gradient)
    times: list[float] = []
    for _ in range(_REPEATS + 1):
        started = now(device)
        norms = torch.stack([norm_of(own) for own in owns])
        for own in owns:
            own.mul_(norms[0])
        made.step()
        times.append(now(device) - started)
    return median(times[1:])


def _copy_s_per_byte(parameters: Sequence[nn.Parameter], device: torch.device) -> float:
    source = max(parameters, key=nn.Parameter.numel).detach()
    target = torch.zeros_like(source)
    return _timed(lambda: target.copy_(source), device) / (source.numel() * source.element_size())


def _crowd(collectives: Collectives) -> float:
    """How many times as long a rank computes while all do, as if alone."""
    device = collectives.world.device
    a = torch.ones(_MATMUL, _MATMUL, device=device)

    def seconds() -> float:
        started = now(device)
        for _ in range(_CROWD_CALLS):
            _ = a @ a
        return now(device) - started

    collectives.gather(None)
    together = max(collectives.gather(seconds()))
    # The others wait here for the one that computes alone.
    alone = collectives.gather(seconds() if collectives.world.is_main else 0.0)[0]
    return max(1.0, together / alone)


def _matmul_s(device: torch.device) -> float:
    a = torch.ones(_MATMUL, _MATMUL, device=device)
    return _timed(lambda: a @ a, device)


def _timed(call: Callable[[], object], device: torch.device) -> float:
    times: list[float] = []
    for _ in range(_REPEATS + 1):
        started = now(device)
        call()
        times.append(now(device) - started)
    return median(times[1:])


def _memory_bytes(device: torch.device, ranks: int) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks
