"""Parameters, gradients and optimizer state shared out along dp_shard, by FSDP2."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from distroml.runtime.parallel.mesh import Mesh


def shard(root: nn.Module, blocks: Sequence[nn.Module], mesh: Mesh) -> None:
    """Share `root`'s parameters out: each block is gathered by itself, the rest with the root. Works on `meta` too.

    Gradients are sums: neither torch's division by the number of ranks nor its average is left (the step divides
    once, by the global count). In a pipeline, gathered parameters stay until the backward pass: gathering them for
    each microbatch again would cost more than the schedule gains.
    """
    plan = mesh.plan
    again = plan.reshard_after_forward and plan.pp == 1
    along = mesh.devices("dp_shard")
    for block in blocks:
        fully_shard(block, mesh=along, reshard_after_forward=again)
    fully_shard(root, mesh=along, reshard_after_forward=False)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
