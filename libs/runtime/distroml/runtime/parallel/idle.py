"""Compression that was asked for and has nothing to do under a plan: said once, since nobody would see it otherwise."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from distroml.planner import Plan
from distroml.runtime.elastic import World
from distroml.runtime.parallel.compression import Compression

log = logging.getLogger("distroml.runtime.plan")


def idle(plan: Plan, compression: Compression) -> Iterator[str]:
    """What of `compression` does nothing under `plan`: each with what was asked, why, and what to do."""
    under = f"the plan {plan.mesh_text}"
    alone = plan.world_size == 1
    if compression.on and plan.dp_replicate == 1:
        instead = "start more workers, or leave it out"
        if not alone:
            instead = "use a plan with dp_replicate"
            instead += ", or compress_shard= along dp_shard" if plan.dp_shard > 1 and plan.tp == 1 else ""
        yield (
            f"compress={compression.scheme!r} compresses nothing under {under}: no two ranks hold the same gradients, "
            f"and only between those it is used; {instead}"
        )
    for name, code, what in (
        ("compress_shard", compression.shard, "gradients are summed"),
        ("compress_gather", compression.gather, "parameters are gathered"),
    ):
        if code != "none" and plan.dp_shard == 1:
            instead = "start more workers, or leave it out" if alone else "use a plan with dp_shard, or leave it out"
            yield f"{name}={code!r} compresses nothing under {under}: no {what} along dp_shard; {instead}"


def warn_of_idle(plan: Plan, compression: Compression, world: World, told: set[str]) -> None:
    """Say on rank 0 what is `idle`, but for what was `told` before, which grows."""
    for line in idle(plan, compression) if world.is_main else ():
        if line not in told:
            told.add(line)
            log.warning("%s", line)
