"""Words for a choice: why this plan, why not another one, why none at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from distroml.planner.compressing import NONE
from distroml.planner.plan import AXES, Plan, stages_text
from distroml.planner.prediction import Prediction
from distroml.planner.request import Wish
from distroml.planner.topology import Level, Topology

if TYPE_CHECKING:
    from distroml.planner.pricing import Pricer

WORDS = {
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
_SHORT = {"grad_accum_steps": "accum"}
TIE = 0.003
"""Steps this close, as a share, are equally long: the prediction cannot tell them apart."""


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
    """How much longer `other` takes than `chosen`, the parts of the step that make it so, and what it saves."""
    ratio = other.step_seconds / chosen.step_seconds - 1
    changes = {part: other.seconds[part] - chosen.seconds[part] for part in chosen.seconds}
    # Parts that change by less than a tenth of the largest change explain nothing.
    least = max(1e-6 * chosen.step_seconds, *(0.1 * abs(change) for change in changes.values()))
    worse = sorted((part for part in changes if changes[part] >= least), key=lambda part: -changes[part])[:3]
    better = sorted((part for part in changes if changes[part] <= -least), key=lambda part: changes[part])[:2]
    told = ", ".join(f"{WORDS[part]} +{seconds_text(changes[part])}" for part in worse)
    saved = ", ".join(f"{WORDS[part]} -{seconds_text(-changes[part])}" for part in better)
    if abs(ratio) < TIE:
        memory = other.peak_bytes_per_rank - chosen.peak_bytes_per_rank
        more = abs(memory) > 0.01 * chosen.peak_bytes_per_rank
        needs = f"{bytes_text(abs(memory))} {'more' if memory > 0 else 'less'} memory" if more else ""
        return f"as fast: {', '.join(filter(None, (told, saved, needs))) or 'no part of it differs'}"
    pace = f"{abs(ratio):.1%} {'slower' if ratio > 0 else 'faster'}" if ratio < 1 else f"{1 + ratio:.1f} times as slow"
    if ratio > 0:
        return f"{pace}: {told}" + (f", though {saved}" if saved else "")
    return f"{pace}: {saved}" + (f", though {told}" if told else "")


def differences(one: Plan, other: Plan) -> str:
    """What `one` asks for where `other` differs, such as "dp_shard=8, recompute=none"; "" where nothing differs."""
    meaningless = {"reasons"}
    for plan in (one, other):
        # Without several stages or shards there is nothing to schedule or to free.
        meaningless |= set() if plan.pp > 1 else {"schedule", "stages"}
        meaningless |= set() if plan.dp_shard > 1 else {"reshard_after_forward"}
        meaningless |= set() if plan.dp_replicate > 1 else {"bucket_mb"}
    changed = [
        (field.name, getattr(one, field.name))
        for field in fields(Plan)
        if field.name not in meaningless and getattr(one, field.name) != getattr(other, field.name)
    ]
    return ", ".join(f"{_SHORT.get(name, name)}={_value_text(name, value)}" for name, value in changed)


def _value_text(name: str, value: Any) -> str:
    if name == "stages":
        return stages_text(value)
    if name == "order":
        return "/".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def compression_lines(prediction: Prediction) -> list[str]:
    """What compression does under the plan, an axis a line; none where nothing is compressed."""
    found, lines = prediction.compressed, list[str]()
    if found is None:
        return lines
    for axis, option, scheme in (
        ("dp_replicate", "compress", found.scheme),
        ("dp_shard", "compress_shard", found.shard),
    ):
        meets = axis == "dp_replicate" and found.sync_every
        if scheme != NONE and found.dense_bytes.get(axis) and not meets:
            sent, dense = bytes_text(found.sent_bytes[axis]), bytes_text(found.dense_bytes[axis])
            lines.append(f"{option}={scheme}: a rank sends {sent} a step along {axis} instead of {dense}")
    if found.sync_every and found.dense_bytes.get("dp_replicate"):
        sent, dense = bytes_text(found.sent_bytes["dp_replicate"]), bytes_text(found.dense_bytes["dp_replicate"])
        told = f"sync_every={found.sync_every}: replicas meet once in so many steps, a rank sends {sent} a step"
        lines.append(f"{told} along dp_replicate on average instead of {dense}")
    if found.codec_s:
        how = "measured here" if found.measured else "at least: as fast as memory is"
        lines.append(f"encoding and decoding takes {seconds_text(found.codec_s)} a step ({how})")
    if found.residual_bytes or found.working_bytes:
        kept, on_the_way = bytes_text(found.residual_bytes), bytes_text(found.working_bytes)
        lines.append(f"compression takes up to {kept} of residuals, and {on_the_way} beside what is exchanged")
    return lines


def reasons_for(
    chosen: Prediction, pricer: Pricer, without: Mapping[str, Prediction | str], rejected: Mapping[str, int]
) -> tuple[str, ...]:
    """One line for each choice in the plan that somebody may ask about.

    `without` has for each axis the best plan found in which it is 1, or why there is none, and for "schedule" the best
    plan found with another one.
    """
    plan = chosen.plan
    lines = [
        f"step {seconds_text(chosen.step_seconds)}, most of it {chosen.binding}; model flops used {chosen.mfu:.1%}"
    ]
    for axis, size in plan.mesh.items():
        if size == 1:
            continue
        told = without[axis]
        if isinstance(told, Prediction):
            told = f"without it the best plan ({told.plan.mesh_text}) is {against(told, chosen)}"
        lines.append(f"{axis}={size}: {told}")
    if plan.pp > 1:
        bubble = chosen.seconds["bubble"] / chosen.step_seconds
        line = f"schedule={plan.schedule}: {bubble:.1%} of the step is bubble"
        other = without.get("schedule")
        if isinstance(other, Prediction):
            line += f"; the best plan with another one ({other.plan.schedule}) is {against(other, chosen)}"
        lines.append(line)
    lines += _one_change(chosen, pricer)
    lines += compression_lines(chosen)
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
        text += f", or on {ranks} of these"
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
