"""Plans for the processes at hand: profile the model, probe the links, time the blocks, search."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from distroml.planner import (
    Alternative,
    Candidate,
    Choice,
    Compressing,
    Corrections,
    MeasuredUnit,
    ModelProfile,
    Plan,
    PlanRefused,
    Prediction,
    Topology,
    Training,
    Wish,
    compressing,
    search,
    wish_of,
)
from distroml.planner.picture import Drawing
from distroml.runtime.compress.control import LADDER
from distroml.runtime.elastic import Collectives, World
from distroml.runtime.parallel.divide import Loss
from distroml.runtime.parallel.lean import lean_copy
from distroml.runtime.parallel.precision import Precision, loss_in
from distroml.runtime.parallel.remembered import LivePlan, corrections_of, keep, key_of, read, write
from distroml.runtime.parallel.weights import WeightSource
from distroml.runtime.profile import ProfileRefused, profile
from distroml.runtime.profile.codecs import codec_slows, time_codecs
from distroml.runtime.profile.machine import measure_device
from distroml.runtime.profile.optimizers import MakeOptimizer, description_of, kind_of, momenta_of
from distroml.runtime.profile.probe import Probed, probe_links
from distroml.runtime.profile.timing import time_units

log = logging.getLogger("distroml.runtime.plan")

# A plan that divides the model must promise this much over whole copies: predictions are no better.
_WORTH_IT = 0.03
_PROBE_S = 2.0
_TIMING_S = 6.0
_BEST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is to be trained.

    Attributes:
        model: real, or on `meta` with `weights`: then no rank needs memory for more than a few blocks of it.
        loss: as in training.
        sample: a batch.
        optimizer: as in training.
        global_batch: samples of a step.
        microbatch: samples of a pass, where that is given.
        precision: of passes, as in training.
        weights: values for a model without memory.
        compress: how gradients are summed along dp_replicate: "none", a scheme, or "auto".
        compress_shard: the same along dp_shard.
        sync_every: steps from one meeting of replicas to the next, where they step by themselves; else 0.
    """

    model: nn.Module
    loss: Loss
    sample: Any
    optimizer: MakeOptimizer
    global_batch: int
    microbatch: int | None = None
    precision: Precision = "fp32"
    weights: WeightSource | None = None
    compress: str = "none"
    compress_shard: str = "none"
    sync_every: int = 0

    @property
    def how(self) -> str:
        """What beside model, batch and machines tells one way of training from another."""
        packed = f" compress={self.compress}/{self.compress_shard}"
        plain = self.compress == self.compress_shard == "none"
        apart = f" sync_every={self.sync_every}" if self.sync_every else ""
        return f"{self.precision} {description_of(self.optimizer)}{'' if plain else packed}{apart}"


@dataclass(frozen=True, slots=True)
class Survey:
    """What a search needs to know of a model and of the machines at hand; equal on all ranks.

    Attributes:
        profile: the model.
        topology: the machines, measured.
        training: how it is trained, and what compressing its gradients takes.
        units: real times of the model's units.
        links: the probe behind the topology.
    """

    profile: ModelProfile
    topology: Topology
    training: Training
    units: tuple[MeasuredUnit, ...]
    links: Probed


def survey(work: Workload, world: World, cache: Path) -> Survey:
    """Measure what a plan of `work` depends on; what is found of links is kept in `cache`. Collective.

    Raises:
        ProfileRefused: the model cannot be profiled.
        PeerLost: another rank is gone.
    """
    model, weights = work.model, work.weights
    # What is seen and timed is what training runs, casts included; parameters and their exchange stay as they are.
    loss = loss_in(work.precision, world.device.type, work.loss)
    described = profile(model, loss, work.sample)
    links = probe_links(world, budget_s=_PROBE_S, cache=cache)
    collectives = Collectives(world)
    device = measure_device(model, collectives, work.optimizer)
    units = time_units(
        model if weights is None else lean_copy(model, described, weights, world.device),
        described,
        loss,
        work.sample,
        collectives,
        microbatches=_sizes(work.global_batch, world.world_size, work.microbatch),
        degrees=[degree for degree in (1, 2, 4, 8) if world.world_size % degree == 0],
        budget_s=_TIMING_S,
        precision=work.precision,
    )
    training = Training(
        optimizer=kind_of(work.optimizer), precision="fp32", compressing=_compressing(work, world, collectives)
    )
    return Survey(described, links.topology(device), training, units, links)


def _compressing(work: Workload, world: World, collectives: Collectives) -> Compressing:
    """What compression of `work` costs here, timed where any is asked for. Collective."""
    ladder = [Candidate(rung.scheme, rung.extra) for rung in LADDER]
    wanted = compressing(
        work.compress,
        work.compress_shard,
        ladder=ladder,
        sync_every=work.sync_every,
        momenta=momenta_of(work.optimizer, work.compress),
    )
    if not wanted.on and wanted.shard == "none":
        return wanted
    schemes = dict.fromkeys([*(one.scheme for one in wanted.candidates), wanted.shard])
    degrees = [size for size in range(2, world.world_size + 1) if world.world_size % size == 0]
    tried = time_codecs(work.model, list(schemes), degrees, collectives)
    return replace(wanted, tried=tried, slows=max(collectives.gather(codec_slows(world))))


def choose(found: Survey, global_batch: int, wish: Wish, corrections: Corrections | None = None) -> Choice:
    """The fastest plan within `wish`; whole copies where they fit and a divided model promises hardly more.

    Raises:
        PlanRefused: nothing fits; says by how much.
    """

    def best(of: Wish) -> Choice:
        if of.sequence_parallel is not None:
            return found_by(of)
        try:
            return found_by(replace(of, sequence_parallel=False))
        except PlanRefused:
            # Nothing timed it: more and smaller calls weigh more on small models than is counted. It saves memory.
            return found_by(of)

    def found_by(of: Wish) -> Choice:
        return search(
            found.profile,
            found.topology,
            found.training,
            global_batch,
            wish=of,
            measured=found.units,
            corrections=corrections,
        )

    return _simple_unless_worth_it(best, wish, found.topology.world_size)


def plan_live(work: Workload, world: World, wish: Wish, cache: Path) -> LivePlan | None:
    """The fastest plan for the ranks of `world`, from measurements on them. Collective.

    What was found for the same model, batch and machines serves again, until a run contradicted it.

    Returns:
        None where there is nothing to choose: in a world of one process, for a batch that cannot be shared out
        evenly, or where the model cannot be profiled.

    Raises:
        PlanRefused: nothing fits within `wish`; says by how much.
        PeerLost: another rank is gone.
    """
    global_batch, microbatch = work.global_batch, work.microbatch
    share, uneven = divmod(global_batch, world.world_size)
    if world.world_size == 1 or uneven or share % (microbatch or 1):
        # Parts of unequal size are for plans of whole copies only, among which there is nothing to choose.
        return None
    collectives = Collectives(world)
    key = key_of(work.model, work.sample, global_batch, microbatch, work.how, repr(wish), world)
    known = collectives.gather(read(cache, key) if world.is_main else None)[0]
    if known is not None:
        return known
    started = time.monotonic()
    try:
        surveyed = survey(work, world, cache)
    except ProfileRefused as error:
        log.info("no plan is searched: %s", error)
        return None
    found: LivePlan | PlanRefused | None = None
    if world.is_main:
        corrections = corrections_of(cache, key)
        try:
            wished = replace(wish, microbatch=wish.microbatch or microbatch)
            choice = choose(surveyed, global_batch, wished, corrections)
        except PlanRefused as error:
            found = error
        else:
            found = live_plan(choice, surveyed, work, world, corrections, key)
            found = replace(found, inputs=_with_seconds(found.inputs, time.monotonic() - started), links=surveyed.links)
            write(cache, found)
            keep(cache, "survey", survey_key(work, world), surveyed)
    agreed = collectives.gather(found)[0]
    if isinstance(agreed, PlanRefused):
        raise agreed
    return agreed


def tune_bucket(work: Workload, world: World, given: Plan, cache: Path) -> LivePlan | None:
    """`given` with the bucket size that hides most of its exchange, from measurements on `world`. Collective.

    Small buckets leave little to exchange once the backward pass is over, large ones pay for fewer messages: which is
    less follows from the links' latency and rate and from the backward pass's seconds. What was found once serves
    again, whatever runs then take, so that generations on the same machines sum in the same order.

    Returns:
        None where there is nothing to choose, nothing can be measured, or nothing fits by the planner's account.

    Raises:
        PeerLost: another rank is gone.
    """
    if given.dp_replicate == 1:
        return None
    try:
        found = plan_live(work, world, replace(wish_of(given), bucket_mb=None), cache)
    except PlanRefused as error:
        log.info("bucket_mb=%g stays as it is, nothing was measured: %s", given.bucket_mb, error)
        return None
    if found is None:
        return None
    size = found.plan.bucket_mb
    others = tuple(reason for reason in given.reasons if not reason.startswith("bucket_mb="))
    why = f"bucket_mb={size:g}: hides most of the exchange behind the backward pass, both measured here"
    # No prediction: a run that contradicts one has its plan searched anew.
    return LivePlan(
        plan=replace(given, bucket_mb=size, reasons=(*others, why)),
        inputs=found.inputs,
        links=found.links,
        key=found.key,
    )


def survey_key(work: Workload, world: World) -> str:
    """Tells surveys apart: whatever was asked of a plan, they are the same."""
    return key_of(work.model, work.sample, work.global_batch, work.microbatch, work.how, "survey", world)


def live_plan(
    choice: Choice, surveyed: Survey, work: Workload, world: World, corrections: Corrections, key: str
) -> LivePlan:
    """A choice as the ranks of `world` keep and tell it."""
    inputs = {
        "world_size": world.world_size,
        "global_batch": work.global_batch,
        "parameters": surveyed.profile.parameters,
        "corrected": dict(corrections.seconds),
    }
    others = [_told(one.prediction, one.reason) for one in choice.alternatives]
    return LivePlan(
        plan=choice.plan,
        inputs=json.dumps(inputs),
        prediction=choice.prediction,
        best=json.dumps(others[:_BEST]),
        alternatives=json.dumps(others),
        drawing=Drawing.of(choice.prediction, surveyed.topology, name=surveyed.profile.name).to_json(),
        corrections=corrections,
        key=key,
    )


def _with_seconds(inputs: str, seconds: float) -> str:
    return json.dumps({**json.loads(inputs), "seconds": round(seconds, 2)})


def _simple_unless_worth_it(best: Callable[[Wish], Choice], wish: Wish, world_size: int) -> Choice:
    """Whole copies, where they fit and a divided model promises hardly more."""
    choice = best(wish)
    if choice.plan.dp_replicate == world_size or any(
        size not in (None, 1) for axis, size in wish.mesh.items() if axis != "dp_replicate"
    ):
        return choice
    try:
        simple = best(replace(wish, dp_replicate=world_size, dp_shard=1, tp=1, pp=1))
    except PlanRefused:
        return choice  # whole copies do not fit
    gain = 1 - choice.prediction.step_seconds / simple.prediction.step_seconds
    if gain > _WORTH_IT:
        return choice
    why = f"dp_replicate={world_size}: whole copies; {choice.plan} promises {gain:.1%} more, less than is worth it"
    against = Alternative(plan=choice.plan, prediction=choice.prediction, reason=f"{gain:.1%} faster, not worth it")
    return replace(
        simple,
        plan=replace(simple.plan, reasons=(why, *simple.plan.reasons)),
        alternatives=(against, *choice.alternatives),
    )


def _sizes(global_batch: int, world_size: int, microbatch: int | None) -> list[int]:
    """Microbatches to time: the wanted one, or every power of two up to what a rank may get at once."""
    if microbatch is not None:
        return [microbatch]
    share = max(1, global_batch // world_size)
    return sorted({share, *(1 << power for power in range(global_batch.bit_length()) if 1 << power <= global_batch)})


def _told(prediction: Prediction, reason: str) -> dict[str, Any]:
    return {"plan": str(prediction.plan), "prediction": prediction.as_dict(), "reason": reason}
