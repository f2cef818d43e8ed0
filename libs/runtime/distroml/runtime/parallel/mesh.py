"""The plan's axes as process groups of one generation."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.debug import _clear_sharding_prop_cache  # pyright: ignore[reportPrivateUsage]

from distroml.planner import AXES, Plan
from distroml.planner.plan import Axis
from distroml.runtime.elastic import World, communication


class Mesh:
    """Where this rank stands on each axis of `plan`, and the groups along them. Made by all ranks together.

    Axes of size one have no group, and neither has a plan that only replicates: its group is the world's.

    Raises:
        PeerLost: another rank is gone.
    """

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan = plan
        self.world = world
        self.place = plan.coordinate(world.rank)
        self._devices: DeviceMesh | None = None
        wide = tuple(axis for axis in AXES if plan.mesh[axis] > 1)
        if wide and wide != ("dp_replicate",):
            # Torch wants a fixed order of axes (sharding outside of tp); where each rank stands is the plan's word.
            placed = torch.arange(plan.world_size).reshape([plan.mesh[axis] for axis in plan.order])
            sizes = [size for size in plan.mesh.values() if size > 1]
            ranks = placed.permute([plan.order.index(axis) for axis in AXES]).reshape(sizes)
            with communication():
                self._devices = DeviceMesh(world.device.type, ranks, mesh_dim_names=wide)

    @property
    def dp_size(self) -> int:
        """Ranks among which samples are shared out."""
        return self.plan.dp

    @property
    def dp_rank(self) -> int:
        """This rank's share of the samples."""
        return self.place["dp_replicate"] * self.plan.dp_shard + self.place["dp_shard"]

    @property
    def tells_loss(self) -> bool:
        """Whether the loss of this rank's samples is told by this rank, and no other of its tp and pp ranks."""
        return self.place["tp"] == 0 and self.place["pp"] == (self.plan.pp - 1)

    def group(self, axis: Axis) -> dist.ProcessGroup | None:
        """The ranks that differ from this one along `axis` only; None where there is no other."""
        if self.plan.mesh[axis] == 1:
            return None
        if self._devices is None:
            return dist.group.WORLD
        return self._devices.get_group(axis)

    def devices(self, *axes: Axis) -> DeviceMesh:
        """Torch's mesh over `axes`, each of size above one."""
        assert self._devices is not None
        return self._devices[axes]

    def close(self) -> None:
        """Have torch forget the groups, on the thread that computed with them; repeatable.

        Torch remembers what came of computations by the meshes that they were on, with their groups, whose threads and
        connections would last as long as the process; and what it remembers it gives to a mesh of a later world, too,
        whose ranks stand alike.
        """
        if self._devices is not None:
            self._devices._pg_registry.clear()  # pyright: ignore[reportPrivateUsage]
            _clear_sharding_prop_cache()
