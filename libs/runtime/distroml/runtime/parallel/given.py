"""What a plan that was given promises, where an earlier search on these machines surveyed the model."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from distroml.planner import Plan, PlanRefused, Pricer, judge
from distroml.runtime.elastic import World
from distroml.runtime.parallel.live import Survey, Workload, live_plan, survey_key
from distroml.runtime.parallel.remembered import LivePlan, corrections_of, kept

log = logging.getLogger("distroml.runtime.plan")


def predicted(plan: Plan, work: Workload, world: World, cache: Path) -> LivePlan | None:
    """`plan` with its prediction, and what a search would have chosen; on one rank alone.

    Returns:
        None where no search for this model, batch and way of training was made here, or the survey of it knows no
        such plan.
    """
    key = survey_key(work, world)
    surveyed = kept(cache, "survey", key, Survey)
    if surveyed is None:
        return None
    corrections = corrections_of(cache, key)
    pricer = Pricer(
        surveyed.profile,
        surveyed.topology,
        surveyed.training,
        work.global_batch,
        measured=surveyed.units,
        corrections=corrections,
    )
    try:
        choice = judge(pricer, plan)
    except PlanRefused as error:
        log.info("the given plan %s is not predicted: %s", plan, error)
        return None
    return replace(live_plan(choice, surveyed, work, world, corrections, key), searched=False)
