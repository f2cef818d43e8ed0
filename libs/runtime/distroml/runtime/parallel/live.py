"""Plans for the processes at hand: profile the model, probe the links, time the blocks, search; remember it all."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from distroml.planner import (
    Alternative,
    Choice,
    Corrections,
    Measurement,
    Plan,
    PlanRefused,
    Prediction,
    Training,
    Wish,
    contradicts,
    learn,
    search,
)
from distroml.planner.picture import Drawing
from distroml.runtime.elastic import Collectives, World
from distroml.runtime.parallel.divide import Loss
from distroml.runtime.parallel.pipeline import trees
from distroml.runtime.profile import ProfileRefused, profile
from distroml.runtime.profile.probe import Probed, probe_links
from distroml.runtime.profile.timing import MakeOptimizer, time_units

log = logging.getLogger("distroml.runtime.plan")

# A plan that divides the model must promise this much over whole copies: predictions are no better.
_WORTH_IT = 0.05
_PROBE_S = 0.8
_TIMING_S = 1.2
_BEST = 4


@dataclass(frozen=True, slots=True)
class LivePlan:
    """A plan for live processes; equal on all ranks.

    Attributes:
        plan: the chosen one.
        inputs: what it was chosen for and with, as JSON.
        prediction: of it; None where nothing could be predicted.
        best: the next best plans with prediction and reason, as JSON.
        alternatives: all of them, as JSON.
        drawing: what a picture of the plan shows (`distroml.planner.picture`), as JSON; empty where nothing could be
            predicted.
        links: the probe, where one was made or used.
        corrections: what earlier runs had taught.
        key: of this model on these machines, under which measurements are remembered.
    """

    plan: Plan
    inputs: str = "{}"
    prediction: Prediction | None = None
    best: str = "[]"
    alternatives: str = "[]"
    drawing: str = ""
    links: Probed | None = None
    corrections: Corrections = field(default_factory=Corrections)
    key: str = ""


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where what was measured of machines and models is kept: `$DISTROML_CACHE`, or the user's cache folder."""
    base = environ.get("DISTROML_CACHE") or Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distroml"
    return Path(base) / "plans"


def plan_live(
    model: nn.Module,
    loss: Loss,
    sample: Any,
    world: World,
    optimizer: MakeOptimizer,
    *,
    global_batch: int,
    microbatch: int | None,
    wish: Wish,
    cache: Path,
) -> LivePlan | None:
    """The fastest plan for the ranks of `world`, from measurements on them. Collective.

    What was found for the same model, batch and machines serves again, until a run contradicted it.

    Returns:
        None where there is nothing to choose: in a world of one process, for a batch that cannot be shared out
        evenly, or where the model cannot be profiled.

    Raises:
        PlanRefused: nothing fits within `wish`; says by how much.
        PeerLost: another rank is gone.
    """
    share, uneven = divmod(global_batch, world.world_size)
    if world.world_size == 1 or uneven or share % (microbatch or 1):
        # Parts of unequal size are for plans of whole copies only, among which there is nothing to choose.
        return None
    collectives = Collectives(world)
    key = _key(model, sample, global_batch, microbatch, wish, world)
    known = collectives.gather(_read(cache, key) if world.is_main else None)[0]
    if known is not None:
        return known
    started = time.monotonic()
    try:
        described = profile(model, loss, sample)
    except ProfileRefused as error:
        log.info("no plan is searched: %s", error)
        return None
    links = probe_links(world, budget_s=_PROBE_S, cache=cache)
    degrees = [degree for degree in (1, 2, 4, 8) if world.world_size % degree == 0]
    timed = time_units(
        model,
        described,
        loss,
        sample,
        collectives,
        optimizer,
        microbatches=_sizes(global_batch, world.world_size, microbatch),
        degrees=degrees,
        budget_s=_TIMING_S,
    )
    found: LivePlan | PlanRefused | None = None
    if world.is_main:
        training = Training(optimizer="adamw", precision="fp32")
        corrections = _corrections(cache, key)
        topology = links.topology(timed.device)
        wished = replace(wish, microbatch=wish.microbatch or microbatch)

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
                described, topology, training, global_batch, wish=of, measured=timed.units, corrections=corrections
            )

        try:
            choice = _simple_unless_worth_it(best, wished, world.world_size)
            seconds = time.monotonic() - started
            inputs = {
                "world_size": world.world_size,
                "global_batch": global_batch,
                "parameters": described.parameters,
                "seconds": round(seconds, 2),
                "corrected": dict(corrections.seconds),
            }
            others = [_told(one.prediction, one.reason) for one in choice.alternatives]
            found = LivePlan(
                plan=choice.plan,
                inputs=json.dumps(inputs),
                prediction=choice.prediction,
                best=json.dumps(others[:_BEST]),
                alternatives=json.dumps(others),
                drawing=Drawing.of(choice.prediction, topology, name=described.name).to_json(),
                links=links,
                corrections=corrections,
                key=key,
            )
            _write(cache, found)
        except PlanRefused as error:
            found = error
    agreed = collectives.gather(found)[0]
    if isinstance(agreed, PlanRefused):
        raise agreed
    return agreed


def remember(live: LivePlan, measured: Measurement, cache: Path) -> tuple[str, str]:
    """Keep what a run taught; where it contradicts the prediction, the next plan is searched anew with it.

    Returns:
        In which way it contradicts, and what becomes of it; both "" where the prediction stands.
    """
    if live.prediction is None:
        return "", ""
    how = contradicts(live.prediction, measured)
    if not how:
        return "", ""
    taught = learn(live.prediction, measured, live.corrections)
    cache.mkdir(parents=True, exist_ok=True)
    _replace(cache / f"corrections-{live.key}.json", msgspec.json.encode(taught))
    (cache / f"plan-{live.key}.json").unlink(missing_ok=True)
    return how, "the next generation is planned with it"


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
    """Microbatches to time: the wanted one, or from one data-parallel rank's whole share down."""
    if microbatch is not None:
        return [microbatch]
    share = max(1, global_batch // world_size)
    return sorted(
        {share, max(1, share // 4), min(global_batch, share * world_size)}, key=lambda size: (size != share, size)
    )


def _told(prediction: Prediction, reason: str) -> dict[str, Any]:
    return {"plan": str(prediction.plan), "prediction": prediction.as_dict(), "reason": reason}


# ---- what is remembered


class _Kept(msgspec.Struct):
    plan: Plan
    inputs: str
    prediction: Prediction | None
    best: str
    corrections: Corrections
    alternatives: str = "[]"
    drawing: str = ""


def _key(model: nn.Module, sample: Any, global_batch: int, microbatch: int | None, wish: Wish, world: World) -> str:
    """Tells models, their code, batches and machines apart."""
    digest = hashlib.sha256()
    for part in (repr(model), str(global_batch), str(microbatch), repr(wish), torch.__version__, str(os.cpu_count())):
        digest.update(part.encode())
    digest.update(f"{world.world_size} {world.device.type} {os.uname().nodename}".encode())
    leaves, _ = trees.flatten(sample)
    for path, leaf in leaves.items():
        digest.update(f"{path}{tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else leaf}".encode())
    for module in sorted({type(one).__module__ for one in model.modules()}):
        source = inspect.getsourcefile(sys.modules[module]) if module in sys.modules else None
        if source is not None and not module.startswith("torch."):
            digest.update(Path(source).read_bytes())
    return digest.hexdigest()[:20]


def _read(cache: Path, key: str) -> LivePlan | None:
    try:
        kept = msgspec.json.decode((cache / f"plan-{key}.json").read_bytes(), type=_Kept)
    except (OSError, msgspec.DecodeError, PlanRefused):
        return None
    return LivePlan(
        plan=kept.plan,
        inputs=kept.inputs,
        prediction=kept.prediction,
        best=kept.best,
        alternatives=kept.alternatives,
        drawing=kept.drawing,
        corrections=kept.corrections,
        key=key,
    )


def _write(cache: Path, live: LivePlan) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    kept = _Kept(
        plan=live.plan,
        inputs=live.inputs,
        prediction=live.prediction,
        best=live.best,
        corrections=live.corrections,
        alternatives=live.alternatives,
        drawing=live.drawing,
    )
    _replace(cache / f"plan-{live.key}.json", msgspec.json.encode(kept))


def _corrections(cache: Path, key: str) -> Corrections:
    try:
        return msgspec.json.decode((cache / f"corrections-{key}.json").read_bytes(), type=Corrections)
    except (OSError, msgspec.DecodeError):
        return Corrections()


def _replace(path: Path, body: bytes) -> None:
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_bytes(body)
    scratch.replace(path)
