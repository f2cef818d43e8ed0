"""Words for a choice: why this plan, why not another one, why none at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distroml.planner.plan import AXES, Plan
from distroml.planner.prediction import Prediction
from distroml.planner.request import Wish
from distroml.planner.topology import Level, Topology

if TYPE_CHECKING:
    from distroml.planner.pricing import Pricer

_WORDS = {
    "compute": "computation",
    "recompute": "recomputation",
    "tp": "collectives of tp",
    "bubble": "the pipeline's bubble",
    "p2p": "messages between stages",
    "dp_shard": "gathers and scatters of dp_shard",
    "dp_replicate": "sums of gradients",
    "tied": "sums of tied gradients",
    "optimizer": "the optimizer",
    "other": "other work",
}


def seconds_text(value: float) -> str:
    """A time in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def bytes_text(value: float) -> str:
    """A size in the unit that suits it."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(value) >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:.0f} bytes"


def against(other: Prediction, chosen: Prediction) -> str:
    """Why `other` was not chosen: what of it takes longer, and what it would have saved."""
    ratio = other.step_seconds / chosen.step_seconds - 1
    changes = {part: other.seconds[part] - chosen.seconds[part] for part in chosen.seconds}
    # Parts that differ by less explain nothing.
    least = 0.01 * chosen.step_seconds
    worse = sorted((part for part in changes if changes[part] > least), key=lambda part: -changes[part])[:3]
    better = sorted((part for part in changes if changes[part] < -least), key=lambda part: changes[part])[:2]
    told = ", ".join(f"{_WORDS[part]} +{seconds_text(changes[part])}" for part in worse)
    saved = ", ".join(f"{_WORDS[part]} -{seconds_text(-changes[part])}" for part in better)
    if ratio < 0.003:
        return "as fast, with more parts" if not told else f"as fast, with more parts: {told}; {saved}".rstrip("; ")
    text = f"{ratio:.1%} slower: {told or 'many small parts'}"
    return f"{text} (against {saved})" if saved else text


def reasons_for(
    chosen: Prediction, pricer: Pricer, others: Sequence[Prediction], rejected: Mapping[str, int]
) -> tuple[str, ...]:
    """One line for each choice in the plan that somebody may ask about."""
    plan = chosen.plan
    lines = [
        f"step {seconds_text(chosen.step_seconds)}, most of it {chosen.binding}; model flops used {chosen.mfu:.1%}"
    ]
    for axis, size in plan.mesh.items():
        without = [other for other in others if other.plan.mesh[axis] == 1]
        if size > 1 and without:
            lines.append(f"{axis}={size}: without it the best plan is {against(without[0], chosen)}")
        elif size > 1:
            lines.append(f"{axis}={size}: no plan without it fits into memory, divides the batch or is as wished")
    if plan.pp > 1:
        bubble = chosen.seconds["bubble"] / chosen.step_seconds
        lines.append(f"schedule={plan.schedule}: {bubble:.1%} of the step is bubble")
    lines += _one_change(chosen, pricer)
    full = bytes_text(chosen.capacity_bytes)
    lines.append(f"memory {bytes_text(chosen.peak_bytes_per_rank)} of {full} per rank at the peak")
    if plan.order != AXES:
        lines.append(f"order={'/'.join(plan.order)}: the axes that send most lie on the fastest links")
    if count := sum(number for reason, number in rejected.items() if "memory" in reason):
        lines.append(f"{count} candidates need more memory than there is")
    return tuple(lines)


def _one_change(chosen: Prediction, pricer: Pricer) -> list[str]:
    """Recomputation and freed parameters, each against the plan without it."""
    plan, lines = chosen.plan, list[str]()
    changed: list[tuple[str, Plan]] = []
    if plan.recompute != "none":
        changed.append((f"recompute={plan.recompute}", replace(plan, recompute="none")))
    if plan.dp_shard > 1 and plan.reshard_after_forward:
        changed.append(("reshard_after_forward=yes", replace(plan, reshard_after_forward=False)))
    for name, other in changed:
        prediction = pricer.predict(other)
        missing = prediction.peak_bytes_per_rank - prediction.capacity_bytes
        if missing > 0:
            lines.append(f"{name}: without it {bytes_text(missing)} of memory are missing")
        else:
            lines.append(f"{name}: without it the plan is {against(prediction, chosen)}")
    return lines


def refusal_of_nothing(pricer: Pricer, wish: Wish, nearest: Prediction, missing: float) -> str:
    """That no plan fits, by how many bytes, and what would make one fit."""
    device = pricer.topology.device
    parts = sorted(nearest.bytes.items(), key=lambda item: -item[1])[:3]
    told = ", ".join(f"{part} {bytes_text(value)}" for part, value in parts)
    needed = nearest.peak_bytes_per_rank + device.reserved_bytes
    text = (
        f"no plan fits into memory: the smallest ({nearest.plan}) needs {bytes_text(nearest.peak_bytes_per_rank)} per "
        f"rank ({told}), {device.name} has {bytes_text(device.usable_bytes)} to give: {bytes_text(missing)} "
        f"({missing:.0f} bytes) too much. It would fit on devices of {bytes_text(needed)}"
    )
    if ranks := _ranks_that_fit(pricer, nearest.plan):
        text += f", on {ranks} of these devices"
    if wish != Wish():
        text += ", and maybe without what was wished for"
    return text


def _ranks_that_fit(pricer: Pricer, plan: Plan) -> int:
    """How many devices it takes at full sharding, to the next doubling; 0 where no number helps."""
    levels = pricer.topology.levels
    for doubling in range(1, 15):
        factor = 1 << doubling
        outer = (
            replace(levels[-1], extent=levels[-1].extent * factor)
            if levels
            else Level(name="cluster", extent=factor, latency_s=0.0, bytes_per_s=1e9)
        )
        larger = Topology(device=pricer.topology.device, levels=(*levels[:-1], outer))
        more = replace(plan, dp_shard=plan.dp_shard * factor, dp_replicate=plan.dp_replicate)
        # More ranks are asked for with the batch that keeps each of them busy.
        batch = None if pricer.global_batch is None else pricer.global_batch * factor
        other = type(pricer)(pricer.profile, larger, pricer.training, batch, corrections=pricer.corrections)
        if other.peak_bytes(more) <= larger.device.usable_bytes:
            return larger.world_size
    return 0
