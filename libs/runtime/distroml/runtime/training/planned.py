"""The plan of one generation: how it was chosen, what it promised, and what it turned out to cost."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import statistics
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from distroml.objectstore import ObjectExists, ObjectStore, ObjectStoreError
from distroml.planner import Measurement, Prediction, parse_wish
from distroml.planner.feedback import AGREEMENT
from distroml.runtime.comm.algorithms import Chosen
from distroml.runtime.elastic import Collectives, World
from distroml.runtime.link import Link
from distroml.runtime.parallel import Plan, choose_plan
from distroml.runtime.parallel.alike import agree_on
from distroml.runtime.parallel.given import predicted
from distroml.runtime.parallel.live import Workload, plan_live, tune_bucket
from distroml.runtime.parallel.remembered import LivePlan, cache_folder, remember
from distroml.runtime.parallel.weights import WeightSource
from distroml.runtime.training.settings import Settings
from distroml.runtime.training.source import ModelSource
from distroml.runtime.training.types import StepInfo
from distroml.workerlink import LinksProbed, PlanChosen, PlanMeasured

log = logging.getLogger("distroml.runtime.train")

# The first steps warm caches and allocators; then enough for a median that one stall does not move.
_SKIPPED = 3
_COUNTED = 20
# An event's texts have 60 kB in all.
_MOST_DRAWING = 36_000


class Planned:
    """Chooses the plan, on all ranks alike, and speaks of it on rank 0. Collective to make.

    Raises:
        PlanRefused: the plan cannot be made; says why, and what is possible.
    """

    def __init__(
        self, link: Link, world: World, settings: Settings, source: ModelSource, sample: Any, store: ObjectStore
    ) -> None:
        self._link = link
        self._store = store
        self._world = world
        self._settings = settings
        self._cache = cache_folder(os.environ)
        self._live: LivePlan | None = None
        self._step_s: list[float] = []
        self._told = False
        data = settings.data
        request = settings.plan
        searches = request == "auto"
        tunes = isinstance(request, str) and bool(parse_wish(request).tune_bucket)
        work: Workload | None = None
        if searches or tunes:
            # Ranks that want different compression would survey different things, and one that was given a whole plan
            # meets the others here, too: it asks when it spreads the model.
            agree_on(settings.compression, Collectives(world), seed=settings.seed, plan=str(request))
            model, weights = source.to_survey()
            work = _workload(settings, sample, model, weights)
        if work is not None and searches:
            wished = "sequence_parallel=no" if settings.compiled else "auto"
            self._live = plan_live(work, world, parse_wish(wished), self._cache)
        if self._live is not None:
            self.plan: Plan = self._live.plan
            return
        blank = source.blank()
        given = choose_plan(
            blank,
            request or "auto",
            world,
            loss=settings.loss,
            sample=sample,
            global_batch=data.global_batch,
            microbatch=data.microbatch,
        )
        self.plan = given
        if work is not None and tunes:
            self._live = tune_bucket(work, world, given, self._cache)
            self.plan = given if self._live is None else self._live.plan
        elif world.is_main and world.world_size > 1:
            # Only told of: every rank trains by the plan as it was given.
            self._live = predicted(given, _workload(settings, sample, blank, None), world, self._cache)

    def tell(self, parameters: int, sums: Chosen | None) -> None:
        """Say which plan this generation trains with, how it sums gradients, and what is promised of it."""
        if not self._world.is_main:
            return
        world, live = self._world, self._live
        log.info(
            "generation %d: %d worker(s) on %s, %.2f million parameters, plan %s",
            world.generation,
            world.world_size,
            world.device.type,
            parameters / 1e6,
            self.plan,
        )
        inputs: dict[str, Any] = {"world_size": world.world_size, "global_batch": self._settings.data.global_batch}
        inputs["parameters"] = parameters
        if live is not None:
            inputs |= json.loads(live.inputs)
        self._link.send(
            PlanChosen(
                generation=world.generation,
                plan=(self.plan if live is None else replace(self.plan, reasons=live.plan.reasons)).to_json(),
                inputs=json.dumps(inputs),
                prediction=_told(live) if live is not None else "",
                best=live.best if live is not None else "",
                alternatives_hash=self._keep_alternatives(live) if live is not None else "",
            )
        )
        if (told := links_told(world.generation, live, sums)) is not None:
            self._link.send(told)

    def _keep_alternatives(self, live: LivePlan) -> str:
        """The hash of the object that holds every other plan, "" where there is none or the store does not take it."""
        if live.alternatives == "[]":
            return ""
        body = live.alternatives.encode()
        digest = hashlib.sha256(body).hexdigest()
        try:
            self._store.put(f"plans/{digest}.json", body, if_absent=True)
        except ObjectExists:
            pass  # an earlier generation chose among the same plans
        except ObjectStoreError as error:
            log.warning("the alternatives to the plan are not kept: %s", error)
            return ""
        return digest

    def step(self, info: StepInfo, *, last: bool) -> None:
        """Count a step; once enough are known, say what the plan turned out to cost."""
        self._step_s.append(info.step_s)
        enough = len(self._step_s) >= _SKIPPED + _COUNTED or last
        if self._told or not enough or not self._world.is_main or len(self._step_s) <= _SKIPPED:
            return
        self._told = True
        counted = self._step_s[_SKIPPED:]
        measured = Measurement(step_seconds=statistics.median(counted), peak_bytes=_peak_bytes(self._world))
        prediction = self._live.prediction if self._live is not None else None
        how, then = ("", "")
        if self._live is not None:
            how, then = remember(self._live, measured, self._cache)
        self._link.send(
            PlanMeasured(
                generation=self._world.generation,
                steps=len(counted),
                step_seconds=measured.step_seconds,
                peak_bytes_per_rank=int(measured.peak_bytes),
                predicted_step_seconds=prediction.step_seconds if prediction is not None else 0.0,
                predicted_peak_bytes_per_rank=int(prediction.peak_bytes_per_rank) if prediction is not None else 0,
                verdict=_verdict(measured, prediction),
                message="; ".join(filter(None, (how, then))),
            )
        )
        if how:
            log.info("the plan's prediction does not stand: %s; %s", how, then)


def links_told(generation: int, live: LivePlan | None, sums: Chosen | None) -> LinksProbed | None:
    """What was measured of links, by the search for a plan or the choice of sums; None where neither did."""
    probed = live.links if live is not None else None
    choice = sums.choice if sums is not None and sums.choice.timed else None
    if probed is None and choice is None:
        return None
    topology: dict[str, Any] = {
        "levels": probed.levels if probed is not None else [],
        "samples": sum(len(some) for some in probed.samples.values()) if probed is not None else 0,
    }
    measured = [one for one in (probed, choice) if one is not None]
    return LinksProbed(
        generation=generation,
        topology=json.dumps(topology),
        seconds=(probed.seconds if probed is not None else 0.0) + (choice.spent_s if choice is not None else 0.0),
        reused=all(one.reused for one in measured),
        sums=json.dumps(choice.told()) if choice is not None else "",
    )


def _workload(settings: Settings, sample: Any, model: nn.Module, weights: WeightSource | None) -> Workload:
    return Workload(
        model=model,
        loss=settings.loss,
        sample=sample,
        optimizer=settings.optimizer,
        global_batch=settings.data.global_batch,
        microbatch=settings.data.microbatch,
        precision=settings.precision,
        weights=weights,
        compress=settings.compression.scheme,
        compress_shard=settings.compression.shard,
        sync_every=settings.compression.outer.every if settings.compression.outer is not None else 0,
    )


def _told(live: LivePlan) -> str:
    """The prediction as an event tells it, with the plan's picture where there is room for it."""
    if live.prediction is None:
        return ""
    told = live.prediction.as_dict()
    if live.drawing and len(live.drawing) <= _MOST_DRAWING:
        told["drawing"] = json.loads(live.drawing)
    return json.dumps(told)


def _verdict(measured: Measurement, prediction: Prediction | None) -> str:
    """How the measurement stands to the prediction; memory is named first, since it ends runs."""
    if prediction is None:
        return "NotPredicted"
    for real, promised, more, less in (
        (measured.peak_bytes, prediction.peak_bytes_per_rank, "MoreMemory", "LessMemory"),
        (measured.step_seconds, prediction.step_seconds, "Slower", "Faster"),
    ):
        if real and promised and abs(real / promised - 1) > AGREEMENT:
            return more if real > promised else less
    return "AsPredicted"


def _peak_bytes(world: World) -> float:
    """The peak of what training holds; 0 on the CPU, where the process's peak has interpreter and libraries in it."""
    return float(torch.cuda.max_memory_allocated(world.device)) if world.device.type == "cuda" else 0.0
