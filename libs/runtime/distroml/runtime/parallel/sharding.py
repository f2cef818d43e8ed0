"""Parameters, gradients and optimizer state shared out along dp_shard, by FSDP2."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from distroml.runtime.parallel.mesh import Mesh
from distroml.runtime.typed import on_gradient


class Reached:
    """Which parameters of one step's backward passes on this rank had a gradient of their own.

    FSDP sums zeros for the others, so that ranks whose passes took different ways still exchange alike; but what no
    rank reached must have no gradient afterwards, as in one process. Only the gathered parameters, which are there
    from the first forward pass on, can tell.
    """

    def __init__(self) -> None:
        self._known: set[nn.Parameter] = set()
        self._seen: set[nn.Parameter] = set()

    def begin(self) -> None:
        """A new step."""
        self._seen.clear()

    def __contains__(self, parameter: nn.Parameter) -> bool:
        # What FSDP does not hold tells of itself.
        return parameter in self._seen or (parameter not in self._known and parameter.grad is not None)

    def watch(self, unit: nn.Module) -> None:
        """Listen to the parameters that are gathered for `unit`, from its first forward pass on."""
        sharded = dict(unit.named_parameters())
        self._known.update(sharded.values())

        def gathered(module: nn.Module, *_: Any) -> None:
            for name, parameter in module.named_parameters():
                if parameter is not sharded[name] and parameter.requires_grad:
                    on_gradient(parameter, self._note(sharded[name]))
            handle.remove()

        # Behind FSDP's own hook, which puts the gathered parameters in place.
        handle = unit.register_forward_pre_hook(gathered)

    def _note(self, parameter: nn.Parameter) -> Callable[[torch.Tensor], None]:
        def note(_: torch.Tensor) -> None:
            self._seen.add(parameter)

        return note


def shard(root: nn.Module, blocks: Sequence[nn.Module], mesh: Mesh, reached: Reached) -> None:
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
            # A batch may lead one rank past a layer that another one's uses.
            module.set_reduce_scatter_unused_params(True)
    for unit in (*blocks, root):
        reached.watch(unit)
    _let_go(root)
    if callable(getattr(root, "generate", None)):
        _gather_to_generate(cast("FSDPModule", root))


def _let_go(root: nn.Module) -> None:
    """Free what a pass without gradients has gathered: no backward pass does, and the next step would make it stale."""
    units = [module for module in root.modules() if isinstance(module, FSDPModule)]

    def ran(*_: Any) -> None:
        if not torch.is_grad_enabled():
            for unit in units:
                unit.reshard()

    root.register_forward_hook(ran)


def _gather_to_generate(root: FSDPModule) -> None:
    """Let `root.generate` call parts of the model by themselves (an encoder), and ranks finish at different times."""
    register_fsdp_forward_method(cast("nn.Module", root), "generate")
    generate: Callable[..., Any] = cast("Any", root).generate
    told = "synced_gpus" in inspect.signature(generate).parameters

    @functools.wraps(generate)
    def generating(*args: Any, **kwargs: Any) -> Any:
        if told:
            # A rank that is ready goes on with the others: they need its share of the parameters.
            kwargs.setdefault("synced_gpus", True)
        try:
            with torch.no_grad():
                return generate(*args, **kwargs)
        finally:
            root.reshard()

    cast("Any", root).generate = generating
