"""Optimizers over split parameters and whole ones.

Torch's optimizers compute many parameters at once where they can (`foreach`, the default on a GPU, and `fused`), and
refuse a group that has both DTensors and plain tensors. While such a group is stepped it stands as two.
"""

from __future__ import annotations

import functools
from typing import Any
from weakref import WeakKeyDictionary

from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Group = dict[str, Any]

# Of optimizers that are inside a step, or were when it raised: their own groups, and each one's parts.
_stepping: WeakKeyDictionary[Optimizer, list[tuple[Group, list[Group]]]] = WeakKeyDictionary()


@functools.cache
def step_by_kind() -> None:
    """From now on every optimizer of this process steps DTensors and plain parameters of a group apart.

    Its groups are as they were after each step, for schedulers and checkpoints; what a step writes into a group stays.
    """
    register_optimizer_step_pre_hook(_part)
    register_optimizer_step_post_hook(_join)


def _part(optimizer: Optimizer, *_: Any) -> None:
    _join(optimizer)
    parted = [(group, _parts(group)) for group in optimizer.param_groups]
    if any(len(parts) > 1 for _, parts in parted):
        _stepping[optimizer] = parted
        optimizer.param_groups = [part for _, parts in parted for part in parts]


def _join(optimizer: Optimizer, *_: Any) -> None:
    parted = _stepping.pop(optimizer, None)
    if parted is None:
        return
    for group, (first, *_others) in parted:
        group.update({name: value for name, value in first.items() if name != "params"})
    optimizer.param_groups = [group for group, _ in parted]


def _parts(group: Group) -> list[Group]:
    """The group itself, or one for each kind of parameter where torch would compute them together."""
    if not (group.get("foreach", False) in (None, True) or group.get("fused")):
        return [group]
    split = [one for one in group["params"] if isinstance(one, DTensor)]
    if not 0 < len(split) < len(group["params"]):
        return [group]
    whole = [one for one in group["params"] if not isinstance(one, DTensor)]
    return [{**group, "params": split}, {**group, "params": whole}]
