"""What each rank of the pool does to plan for itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distroml.planner import Measurement, Wish, parse_wish
from distroml.runtime.elastic import World
from distroml.runtime.parallel import Precision
from distroml.runtime.parallel.given import predicted
from distroml.runtime.parallel.live import Workload, plan_live, survey, tune_bucket
from distroml.runtime.parallel.plan import plan as make_plan
from distroml.runtime.parallel.remembered import remember
from libs.runtime.tests.profile.memory_ranks import Tower, batch, loss

GLOBAL_BATCH = 8


def _optimizer(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def _work(model: nn.Module, precision: Precision = "fp32") -> Workload:
    return Workload(
        model=model, loss=loss, sample=batch(), optimizer=_optimizer, global_batch=GLOBAL_BATCH, precision=precision
    )


def look(world: World, cache: str) -> dict[str, Any]:
    """What a survey finds, in plain values; and whether it left the model as it was."""
    torch.manual_seed(0)
    model = Tower()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    found = survey(_work(model), world, Path(cache))
    device = found.topology.device
    same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return {
        "untouched": same and all(parameter.grad is None for parameter in model.parameters()),
        "units": [
            [unit.shape, unit.microbatch, unit.tp, unit.recompute, unit.forward_s, unit.backward_s]
            for unit in found.units
        ],
        "kinds": {unit.shape: unit.kind for unit in found.profile.units},
        "rates": [[rate.collective, rate.latency_s, rate.bytes_per_s] for rate in found.topology.levels[0].rates],
        "busy": found.topology.levels[0].busy,
        "device": [device.tensor_s, device.divided_tensor_s, device.copy_s_per_byte, device.memory_bytes_per_s],
        "reused": found.links.reused,
    }


def choose_twice(world: World, cache: str, wish: str, slower: float) -> dict[str, Any]:
    """A plan, the same asked for again, and once more after a run that took `slower` times what was promised."""
    folder = Path(cache)

    def ask(model: nn.Module, wanted: Wish) -> Any:
        return plan_live(_work(model), world, wanted, folder)

    model, wanted = Tower(), parse_wish(wish)
    first, again = ask(model, wanted), ask(model, wanted)
    told = ("", "")
    if world.is_main:
        told = remember(first, Measurement(step_seconds=slower * first.prediction.step_seconds), folder)
    torch.distributed.barrier()
    third = ask(model, wanted)
    return {
        "plan": str(first.plan),
        "again": str(again.plan),
        "searched_again": again.links is not None,
        "told": told,
        "searched_third": third.links is not None,
        "corrected": json.loads(third.inputs)["corrected"],
        "predicted": [one.prediction.step_seconds for one in (first, again, third)],
        "alternatives": len(json.loads(first.alternatives)),
    }


def buckets(world: World, cache: str) -> dict[str, Any]:
    """A given plan whose buckets are tuned, and the same asked for again."""
    given = make_plan("dp_replicate=2", world_size=world.world_size, global_batch=GLOBAL_BATCH, microbatch=2)
    first, again = (tune_bucket(_work(Tower()), world, given, Path(cache)) for _ in range(2))
    return {
        "same": [
            replace(one.plan, bucket_mb=given.bucket_mb, reasons=()) == replace(given, reasons=())
            for one in (first, again)
        ],
        "sizes": [one.plan.bucket_mb for one in (first, again)],
        "reason": first.plan.reasons[-1],
        "probed": [one.links is not None for one in (first, again)],
        "predicted": first.prediction is not None,
    }


def choose_and_give(world: World, cache: str, given: str, compress: str) -> dict[str, Any]:
    """A searched plan with compression, then a given one, before and after the search: what is told of it."""
    folder = Path(cache)
    work = replace(_work(Tower()), compress=compress)
    plan = make_plan(given, world_size=world.world_size, global_batch=GLOBAL_BATCH)
    before = predicted(plan, work, world, folder)
    searched = plan_live(work, world, parse_wish("auto"), folder)
    after = predicted(plan, work, world, folder)
    taught = ("", "")
    if after is not None and after.prediction is not None and world.is_main:
        taught = remember(after, Measurement(step_seconds=3 * after.prediction.step_seconds), folder)
    torch.distributed.barrier()
    corrected = predicted(plan, work, world, folder)
    assert searched is not None
    assert searched.prediction is not None
    return {
        "before": before,
        "searched": searched.prediction.as_dict().get("compression"),
        "plan": str(plan),
        "given": None if after is None else str(after.plan),
        "reasons": () if after is None else after.plan.reasons,
        "promised": [0.0 if one is None else one.prediction.step_seconds for one in (after, corrected)],
        "compression": None if after is None else after.prediction.as_dict().get("compression"),
        "taught": taught,
    }


def choose_in(world: World, cache: str, precisions: list[Precision]) -> list[str]:
    """The key under which the plan of each precision is kept; "" where it was not searched."""
    found = [plan_live(_work(Tower(), precision), world, parse_wish("auto"), Path(cache)) for precision in precisions]
    return [live.key if live is not None and live.links is not None else "" for live in found]
