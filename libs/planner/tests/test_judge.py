"""Plans that were given: predicted like chosen ones, beside what a search would have taken."""

import pytest

from distroml.planner import Plan, PlanRefused, Pricer, complete, judge, parse_wish, search
from libs.planner.tests.models import TRAINING, gpt, machines

MODEL = gpt()


def pricer(**values):
    return Pricer(MODEL, machines(**values), TRAINING, 64)


def test_a_given_plan_has_a_prediction_and_the_plans_that_it_was_not():
    plan = Plan(tp=2, dp_replicate=4, microbatch=4)
    found = judge(pricer(memory_gib=64), plan)
    best = search(MODEL, machines(memory_gib=64), TRAINING, 64)
    assert found.prediction.step_seconds == pricer(memory_gib=64).predict(plan).step_seconds
    assert (found.plan.mesh, found.plan.microbatch, found.plan.grad_accum_steps) == (plan.mesh, 4, 4)
    assert found.alternatives[0].prediction.step_seconds == best.prediction.step_seconds
    assert "faster: " in found.alternatives[0].reason
    assert any("less time" in reason for reason in found.plan.reasons)


def test_what_a_search_would_have_chosen_is_no_alternative_to_itself():
    best = search(MODEL, machines(memory_gib=64), TRAINING, 64)
    found = judge(pricer(memory_gib=64), best.plan)
    assert found.prediction.step_seconds == best.prediction.step_seconds
    assert [one.plan for one in found.alternatives] == [one.plan for one in best.alternatives]
    assert not any("less time" in reason for reason in found.plan.reasons)


def test_a_wish_is_completed_first():
    one = pricer(memory_gib=64)
    completed = complete(one, parse_wish("tp=2,dp_shard=4"))
    assert judge(one, completed.plan).prediction.step_seconds == completed.step_seconds


def test_a_plan_that_may_not_fit_is_predicted_all_the_same():
    found = judge(pricer(memory_gib=1.0), Plan(dp_replicate=8, microbatch=8))
    assert found.prediction.peak_bytes_per_rank > found.prediction.capacity_bytes
    assert any(reason.startswith("it may not fit: ") for reason in found.plan.reasons)
    assert found.alternatives
    alone = judge(pricer(memory_gib=0.1), Plan(dp_replicate=8, microbatch=8))
    assert alone.alternatives == ()
    assert any("no plan fits into memory" in reason for reason in alone.plan.reasons)


def test_an_impossible_plan_is_refused():
    with pytest.raises(PlanRefused, match="makes 2 ranks, the cluster has 8"):
        judge(pricer(), Plan(tp=2))
