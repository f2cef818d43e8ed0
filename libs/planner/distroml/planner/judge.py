"""A given plan beside what a search would have chosen: for jobs whose plan is not the planner's own."""

from __future__ import annotations

from dataclasses import replace

from distroml.planner.plan import Plan, PlanRefused
from distroml.planner.prediction import Prediction
from distroml.planner.pricing import Pricer
from distroml.planner.reasons import TIE, against, compression_lines, differences
from distroml.planner.request import Wish
from distroml.planner.search import Alternative, Choice, Search


def judge(pricer: Pricer, plan: Plan) -> Choice:
    """`plan` as if it had been chosen: its prediction, and the plans of a free search, each against it.

    A plan that lacks memory by the planner's reckoning is predicted all the same: who gave it may know better. Its
    `grad_accum_steps` follows from the global batch and the microbatch, whatever the plan says.

    Raises:
        PlanRefused: the plan is not possible; says why, and what is.
    """
    priced = pricer.price(plan)
    prediction = priced if isinstance(priced, Prediction) else priced.prediction
    if prediction is None:
        raise PlanRefused(str(priced))
    reasons = ["the plan was given, not searched for"]
    if not isinstance(priced, Prediction):
        reasons.append(f"it may not fit: {priced.reason}")
    try:
        free = Search(pricer, Wish()).run()
    except PlanRefused as error:
        others, rejected = list[Prediction](), dict[str, int]()
        reasons.append(str(error))
    else:
        others = [free.prediction, *(one.prediction for one in free.alternatives)]
        rejected = dict(free.rejected)
        gain = 1 - free.prediction.step_seconds / prediction.step_seconds
        if gain > TIE:
            reasons.append(f"{free.plan} promises {gain:.1%} less time")
    reasons += compression_lines(prediction)
    _, count = pricer.samples(plan)
    given = replace(plan, grad_accum_steps=count)
    told = replace(given, reasons=(*reasons, *plan.reasons))
    return Choice(
        plan=told,
        prediction=replace(prediction, plan=told),
        alternatives=tuple(
            Alternative(
                plan=replace(other.plan, reasons=()),
                prediction=replace(other, plan=replace(other.plan, reasons=())),
                reason=against(other, prediction),
            )
            for other in others
            if differences(other.plan, given)
        ),
        rejected=rejected,
    )
