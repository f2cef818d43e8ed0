"""Which of two equally fast plans is taken, and in which words the other one is left."""

from __future__ import annotations

from distroml.planner.candidates import Shape
from distroml.planner.plan import AXES, Plan
from distroml.planner.prediction import Prediction
from distroml.planner.reasons import against


def shape_of(plan: Plan) -> Shape:
    """What of `plan` a search lists alternatives for."""
    return Shape(plan.tp, plan.pp, plan.dp)


_SCHEDULE_PARTS = {"1f1b": 0, "gpipe": 1, "interleaved": 2, "zero_bubble": 3}


def complexity(plan: Plan) -> tuple[object, ...]:
    """What to prefer between equally fast plans: fewer axes, plainer schedules, less recomputation, usual order."""
    return (
        sum(size > 1 for size in plan.mesh.values()),
        plan.pp > 1,
        plan.tp > 1,
        _SCHEDULE_PARTS[plan.schedule],
        plan.recompute != "none",
        plan.sequence_parallel,
        plan.chunks,
        plan.order != AXES,
        plan.mesh["pp"],
        plan.mesh["tp"],
        plan.mesh["dp_shard"],
        -(plan.microbatch or 0),
        plan.order,
    )


def not_chosen(other: Prediction, chosen: Prediction) -> str:
    """Why `other` was not chosen."""
    reason = against(other, chosen)
    if reason.startswith("as fast") and complexity(other.plan) > complexity(chosen.plan):
        reason += f"; {chosen.plan.mesh_text} is plainer"
    return reason
