"""FSDP units, and where their parameters' shards lie in the flat buffers that torch hands to collectives.

Torch lists a unit's parameters in the order of `parameters()`, divides the first dimension of each over the ranks and
pads it, so that all ranks' parts are of one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

from torch import nn
from torch.distributed.fsdp import FSDPModule


def units_of(stages: Sequence[nn.Module]) -> list[FSDPModule]:
    """Every FSDP unit within these modules, in their order."""
    return [module for stage in stages for module in stage.modules() if isinstance(module, FSDPModule)]


def own_parameters(unit: FSDPModule) -> Iterator[nn.Parameter]:
    """What is gathered with a unit: its parameters without those of units inside of it."""
    root = cast("nn.Module", unit)
    inner = [module for module in root.modules() if module is not root and isinstance(module, FSDPModule)]
    others = {id(parameter) for module in inner for parameter in cast("nn.Module", module).parameters()}
    return (parameter for parameter in root.parameters() if id(parameter) not in others)


def shard_numel(parameter: nn.Parameter, ranks: int) -> int:
    """Elements of one rank's part of a parameter, with padding."""
    return -(-parameter.shape[0] // ranks) * math.prod(parameter.shape[1:])
