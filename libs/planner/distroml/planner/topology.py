"""Machines as the planner sees them: one kind of device, joined by levels of links from the node outwards.

Ranks are numbered so that neighbours lie together: rank 0 to `levels[0].extent - 1` are one node, and so on outwards.
A group of ranks along an axis of the mesh is fully described by its size and stride; `Topology.route` says which
levels it crosses, and how many of its members share the links of one unit of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

from distroml.planner.plan import Axis, Plan, PlanRefused

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "send"]
COLLECTIVES: tuple[Collective, ...] = get_args(Collective)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One worker's share of hardware: peak rates, and what training really gets of them.

    Attributes:
        name: for people.
        flops: peak matrix operations per second by dtype ("bf16", "fp16", "fp32", "fp64", …).
        memory_bytes: memory of the device.
        memory_bytes_per_s: peak rate of memory traffic.
        matmul_efficiency: share of the peak that an endlessly large matrix product reaches.
        attention_efficiency: share of the peak that attention by tiles reaches, counted as if it skipped nothing.
        memory_efficiency: share of the memory rate that a large element-wise operation reaches.
        kernel_s: least time of one operation, that of launching it.
        link_efficiency: share of a link's described rate that collectives reach, by level name; levels that were
            measured are not scaled.
        overlap: share of an exchange that can hide behind computation; small where links and computation share the
            processor, as on CPUs.
        split_backward: what a backward pass costs, as a factor, when a zero-bubble schedule runs it in two halves.
        reserved_bytes: memory that training cannot have: the driver's context, communicators.
        margin: share of the bytes that come and go which the allocator loses to fragmentation.
        shard_overlap: the same for gathers and scatters of sharded units; None: as `overlap`. 0 where the runtime
            waits for each, as torch's FSDP does on CPUs.
        copy_s_per_byte: host time of laying one byte of gradients into the buffers that are summed over whole copies.
        tensor_s: what each parameter tensor adds to a step's end: clipping, the optimizer's launch.
        divided_tensor_s: the same where a rank holds a part of the tensor (torch's DTensor).
        crowd: how many times as long a rank computes while all do, as if alone: above 1 where ranks share processors.
        step_s: constant part of a step that is none of the above.
        flash: whether attention by tiles is the usual kernel on it.
        on_cpu: whether ranks exchange through processors: codes of gradients then go message by message, and sums may
            go by a hierarchy of hosts.
    """

    name: str
    flops: Mapping[str, float]
    memory_bytes: float
    memory_bytes_per_s: float
    matmul_efficiency: float = 0.8
    attention_efficiency: float = 0.5
    memory_efficiency: float = 0.8
    kernel_s: float = 0.0
    link_efficiency: Mapping[str, float] = field(default_factory=dict[str, float])
    overlap: float = 0.9
    split_backward: float = 1.05
    reserved_bytes: float = 0.0
    margin: float = 0.02
    shard_overlap: float | None = None
    copy_s_per_byte: float = 0.0
    tensor_s: float = 0.0
    divided_tensor_s: float = 0.0
    crowd: float = 1.0
    step_s: float = 0.0
    flash: bool = True
    on_cpu: bool = False

    def __post_init__(self) -> None:
        if not self.flops:
            raise PlanRefused(f"device {self.name!r} needs flops for at least one dtype, such as {{'bf16': 312e12}}")
        above_zero: dict[str, float] = {
            **{f"flops[{dtype}]": rate for dtype, rate in self.flops.items()},
            "memory_bytes": self.memory_bytes,
            "memory_bytes_per_s": self.memory_bytes_per_s,
            "matmul_efficiency": self.matmul_efficiency,
            "attention_efficiency": self.attention_efficiency,
            "memory_efficiency": self.memory_efficiency,
        }
        for name, value in above_zero.items():
            if not value > 0 or math.isinf(value):
                raise PlanRefused(f"device {self.name!r}: {name} must be a number above 0, got {value}")
        if not 0 <= self.overlap <= 1:
            raise PlanRefused(f"device {self.name!r}: overlap must lie between 0 and 1, got {self.overlap}")

    def peak(self, dtype: str) -> float:
        """Peak operations per second in `dtype`; of a dtype without a figure, that of the next wider one."""
        for known in _WIDER.get(dtype, (dtype,)):
            if known in self.flops:
                return self.flops[known]
        return min(self.flops.values())

    @property
    def usable_bytes(self) -> float:
        """Memory that a plan may fill."""
        return self.memory_bytes - self.reserved_bytes


_WIDER = {
    "fp8": ("fp8", "bf16", "fp16", "fp32", "fp64"),
    "bf16": ("bf16", "fp16", "fp32", "fp64"),
    "fp16": ("fp16", "bf16", "fp32", "fp64"),
    "fp32": ("fp32", "fp64"),
    "fp64": ("fp64",),
}


class Rate(NamedTuple):
    """One collective by itself, in groups of `ranks`: the time of a step of its ring, and the rate of large ones."""

    collective: Collective
    ranks: int
    latency_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Links that join `extent` units of the level below (devices, for the first level).

    Attributes:
        name: "node", "cluster", …
        extent: units of the level below that it joins.
        latency_s: time of an empty message.
        bytes_per_s: what one device sends, and at the same time receives, while all devices do so.
        rates: collectives that were measured here by themselves; others follow the two figures above.
        busy: share of an exchange during which it keeps the processor busy that would compute meanwhile; no
            computation hides that.
    """

    name: str
    extent: int
    latency_s: float
    bytes_per_s: float
    rates: tuple[Rate, ...] = ()
    busy: float = 0.0

    def __post_init__(self) -> None:
        if self.extent < 1:
            raise PlanRefused(f"level {self.name!r}: extent must be at least 1, got {self.extent}")
        if not self.bytes_per_s > 0 or not self.latency_s >= 0:
            raise PlanRefused(
                f"level {self.name!r}: bytes_per_s must be above 0 and latency_s at least 0, "
                f"got {self.bytes_per_s} and {self.latency_s}"
            )

    def rate(self, collective: Collective, ranks: int) -> Rate:
        """What `collective` gets here in groups of `ranks`; where only others were measured, the next larger ones."""
        if not self.rates:
            return Rate(collective, ranks, self.latency_s, self.bytes_per_s)
        own = [rate for rate in self.rates if rate.collective == collective]
        plain = Rate(collective, ranks, self.latency_s, self.bytes_per_s)
        return min(own, key=lambda rate: (rate.ranks < ranks, abs(rate.ranks - ranks)), default=plain)


@dataclass(frozen=True, slots=True)
class Hop:
    """One level that a group crosses.

    Attributes:
        level: the links.
        fan: units of the level below that the group joins there.
        below: members of the group in each such unit; each brings its own share of the unit's links, so that the
            group has `below` times a device's rate.
    """

    level: Level
    fan: int
    below: int

    def bytes_per_s(self, collective: Collective) -> float:
        """What the group gets across this level, for one ring through all its members."""
        return self.level.rate(collective, self.fan).bytes_per_s * self.below


Route = tuple[Hop, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """One kind of device, and the levels that join them, from the innermost outwards."""

    device: Device
    levels: tuple[Level, ...] = ()

    @property
    def world_size(self) -> int:
        """Devices in all."""
        return math.prod(level.extent for level in self.levels)

    def route(self, size: int, stride: int) -> Route:
        """The levels that a group of `size` ranks, `stride` apart, crosses: innermost first, the last one binds.

        Groups that lie askew on the units (a tp of 6 on nodes of 8) are taken at their worst.
        """
        hops: list[Hop] = []
        unit, below = 1, 1
        for number, level in enumerate(self.levels):
            unit *= level.extent
            outermost = number == len(self.levels) - 1
            inside = size if outermost else max(1, math.gcd(size * stride, unit) // stride)
            fan = -(-inside // below)
            if fan > 1:
                hops.append(Hop(level, fan, below))
            below = max(below, inside)
        return tuple(hops)

    def axis_route(self, plan: Plan, axis: Axis) -> Route:
        """`route` of the groups along `axis`, under the plan's `order`."""
        mesh = plan.mesh
        inner = plan.order[plan.order.index(axis) + 1 :]
        return self.route(mesh[axis], math.prod(mesh[one] for one in inner))

    def scaled(self, bandwidth: float) -> Topology:
        """The same machines with links of `bandwidth` times the rate."""
        return replace(
            self,
            levels=tuple(
                replace(
                    level,
                    bytes_per_s=level.bytes_per_s * bandwidth,
                    rates=tuple(rate._replace(bytes_per_s=rate.bytes_per_s * bandwidth) for rate in level.rates),
                )
                for level in self.levels
            ),
        )


def described(
    device: Device,
    *,
    nodes: int,
    devices_per_node: int,
    intra_bytes_per_s: float,
    inter_bytes_per_s: float,
    intra_latency_s: float = 5e-6,
    inter_latency_s: float = 10e-6,
) -> Topology:
    """Nodes of equal devices from nominal figures; rates are per device and direction, before `link_efficiency`."""

    def level(name: str, extent: int, latency_s: float, rate: float) -> Level:
        reached = rate * device.link_efficiency.get(name, 1.0)
        return Level(name=name, extent=extent, latency_s=latency_s, bytes_per_s=reached)

    return Topology(
        device=device,
        levels=(
            level("node", devices_per_node, intra_latency_s, intra_bytes_per_s),
            level("cluster", nodes, inter_latency_s, inter_bytes_per_s),
        ),
    )
