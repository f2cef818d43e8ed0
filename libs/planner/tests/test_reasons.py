"""Why one plan is slower than another: the parts that really differ most, whatever single choice differs."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.planner import SECONDS, Plan, Pricer, explain, parse_wish, search, wish_of
from distroml.planner.reasons import TIE, WORDS, against, differences
from libs.planner.tests.models import TRAINING, gpt, machines

MODEL = gpt()


def predict(plan):
    return Pricer(MODEL, machines(), TRAINING, 64).predict(plan)


PAIRS = [
    ("split", Plan(dp_replicate=8, microbatch=8), {"dp_replicate": 1, "dp_shard": 8}),
    ("recompute", Plan(dp_shard=8, microbatch=8), {"recompute": "full"}),
    ("selective", Plan(dp_shard=8, microbatch=8), {"recompute": "selective"}),
    ("reshard", Plan(dp_shard=8, microbatch=1), {"reshard_after_forward": False}),
    ("order", Plan(dp_replicate=4, tp=2, microbatch=4), {"order": ("pp", "tp", "dp_replicate", "dp_shard")}),
    ("sequence", Plan(dp_replicate=4, tp=2, microbatch=4), {"sequence_parallel": True}),
    ("microbatch", Plan(dp_shard=8, microbatch=8), {"microbatch": 1, "grad_accum_steps": 8}),
    ("schedule", Plan(pp=4, dp_replicate=2, stages=(2,) * 4, microbatch=4), {"schedule": "zero_bubble"}),
    ("stages", Plan(pp=2, dp_replicate=4, stages=(4, 4), microbatch=4), {"stages": (6, 2)}),
    ("bucket", Plan(dp_replicate=8, microbatch=8), {"bucket_mb": 1.0}),
    ("tp", Plan(dp_replicate=8, microbatch=4), {"dp_replicate": 4, "tp": 2}),
    ("pp", Plan(dp_replicate=8, microbatch=4), {"dp_replicate": 4, "pp": 2, "stages": (4, 4)}),
]
UNSAID = {"pp": {"stages"}}
"""What follows from another difference."""


@pytest.mark.parametrize(("plan", "changes"), [pair[1:] for pair in PAIRS], ids=[pair[0] for pair in PAIRS])
@pytest.mark.parametrize("turned", [False, True])
def test_the_part_that_changes_most_is_named_first(plan, changes, turned):
    one, other = predict(plan), predict(replace(plan, **changes))
    if turned:
        one, other = other, one
    text = against(other, one)
    changed = {part: other.seconds[part] - one.seconds[part] for part in SECONDS}
    ratio = other.step_seconds / one.step_seconds - 1
    pace = f"{abs(ratio):.1%} {'slower' if ratio > 0 else 'faster'}" if ratio < 1 else f"{1 + ratio:.1f} times as slow"
    assert text.startswith("as fast: " if abs(ratio) < TIE else f"{pace}: ")
    most = max(changed, key=lambda part: abs(changed[part]))
    assert f"{WORDS[most]} {'+' if changed[most] > 0 else '-'}" in text
    if abs(ratio) >= TIE:
        leading = max(changed, key=lambda part: changed[part] * (1 if ratio > 0 else -1))
        assert text.split(": ")[1].startswith(WORDS[leading])
    named = [part for part in SECONDS if re.search(rf"\b{WORDS[part]} [+-]", text)]
    assert all(changed[part] for part in named)


@pytest.mark.parametrize(("name", "plan", "changes"), PAIRS, ids=[pair[0] for pair in PAIRS])
def test_what_differs_can_be_asked_for(name, plan, changes):
    said = changes.keys() - UNSAID.get(name, set())
    other = replace(plan, **changes)
    text = differences(other, plan)
    asked = parse_wish(text)
    assert {one: getattr(asked, one) for one in said} == {one: changes[one] for one in said}
    assert len(text.split(", ")) == len(said)
    assert differences(plan, plan) == ""


def test_what_means_nothing_does_not_differ():
    plain = Plan(dp_replicate=8, microbatch=8)
    assert differences(replace(plain, reshard_after_forward=False, schedule="gpipe", reasons=("why",)), plain) == ""


def test_equal_steps_are_told_apart_by_memory():
    one = predict(Plan(dp_shard=8, microbatch=1))
    other = replace(one, peak_bytes_per_rank=one.peak_bytes_per_rank * 2)
    assert against(other, one) == f"as fast: {one.peak_bytes_per_rank / 2**20:.2f} MiB more memory"
    assert against(one, one) == "as fast: no part of it differs"


@given(st.lists(st.floats(0, 1), min_size=len(SECONDS), max_size=len(SECONDS)), st.floats(0.01, 3))
def test_any_difference_finds_words(values, factor):
    one = predict(Plan(dp_shard=8, microbatch=1))
    seconds = {part: value + 1e-3 for part, value in zip(SECONDS, values, strict=True)}
    more = {part: value * factor for part, value in seconds.items()}
    one, other = (replace(one, seconds=parts, step_seconds=sum(parts.values())) for parts in (seconds, more))
    text = against(other, one)
    assert ": " in text
    assert not text.endswith((": ", ", "))


def chosen(**values):
    topology = machines(**values)
    choice = search(MODEL, topology, TRAINING, 64)
    return choice, explain(MODEL, topology, TRAINING, 64, choice)


@pytest.mark.parametrize("asked", ["recompute=full", "reshard_after_forward=yes", "microbatch=2"])
def test_a_counterfactual_that_only_differs_in_one_choice_names_it(asked):
    choice, told = chosen(memory_gib=64)
    found = told.why_not(parse_wish(asked))
    assert found.prediction.plan != choice.plan
    assert f"it differs in {differences(found.prediction.plan, choice.plan)}" in found.reason
    assert asked.split("=")[0] in found.reason


def test_the_other_way_to_share_a_mesh_is_an_alternative():
    choice, _ = chosen(memory_gib=4)
    same = [one for one in choice.alternatives if (one.plan.tp, one.plan.pp) == (choice.plan.tp, choice.plan.pp)]
    assert same
    assert all(one.plan.dp_shard != choice.plan.dp_shard for one in same)
    assert any(WORDS[part] in same[0].reason for part in ("dp_shard", "dp_replicate", "optimizer"))


def test_an_axis_is_compared_with_the_best_plan_without_it():
    topology = machines(memory_gib=0.6)
    choice = search(MODEL, topology, TRAINING, 64)
    assert choice.plan.dp_shard > 1
    without = search(MODEL, topology, TRAINING, 64, wish=parse_wish("dp_shard=1"))
    line = next(line for line in choice.plan.reasons if line.startswith(f"dp_shard={choice.plan.dp_shard}: "))
    assert f"({without.plan.mesh_text})" in line
    assert against(without.prediction, choice.prediction) in line


def test_of_equally_fast_plans_the_one_with_fewer_axes_is_taken():
    pricer = Pricer(MODEL, machines(memory_gib=64), TRAINING, 64)
    choice = search(MODEL, machines(memory_gib=64), TRAINING, 64)
    for one in choice.alternatives:
        if one.reason.startswith("as fast"):
            assert one.reason.endswith(f"{choice.plan.mesh_text} is plainer")
    wished = search(MODEL, machines(memory_gib=64), TRAINING, 64, wish=wish_of(choice.plan))
    assert wished.prediction.step_seconds == pricer.predict(choice.plan).step_seconds


def test_what_is_far_slower_is_told_in_times():
    one = predict(Plan(dp_shard=8, microbatch=1))
    seconds = {part: value * 5 for part, value in one.seconds.items()}
    other = replace(one, seconds=seconds, step_seconds=5 * one.step_seconds)
    assert against(other, one).startswith("5.0 times as slow: ")
    assert against(one, other).startswith("80.0% faster: ")


def test_an_axis_that_cannot_be_left_out_says_why():
    """Memory, or that nothing without it is as wished; never a guess at one of them."""
    large = gpt(layers=48, hidden=4096, heads=32)
    reasons = search(large, machines(memory_gib=28), TRAINING, 64, wish=parse_wish("tp=1,pp=1")).plan.reasons
    (line,) = [line for line in reasons if line.startswith("dp_shard=8: ")]
    assert line.startswith("dp_shard=8: all else alike, without it ")
    assert line.endswith(" GiB of memory are missing")
    wished = search(MODEL, machines(memory_gib=64), TRAINING, 64, wish=parse_wish("tp=2")).plan.reasons
    assert any(line.startswith("tp=2: no plan without it is possible") for line in wished)


def test_the_schedule_is_compared_with_another_one():
    choice = search(MODEL, machines(memory_gib=64), TRAINING, 64, wish=parse_wish("pp=2"))
    (line,) = [line for line in choice.plan.reasons if line.startswith(f"schedule={choice.plan.schedule}: ")]
    assert "; the best plan with another one (" in line
    assert f"with another one ({choice.plan.schedule})" not in line


def test_a_plan_that_a_larger_batch_makes_impossible_says_why():
    topology = machines(memory_gib=2)
    wish = parse_wish("pp=2,schedule=gpipe,microbatch=1,recompute=none")
    choice = search(MODEL, topology, TRAINING, 32, wish=wish)
    cases = explain(MODEL, topology, TRAINING, 32, choice, wish=parse_wish("auto")).sensitivity()
    larger = next(case for case in cases if case.change == "a global batch of 64")
    assert larger.kept is None
    assert "too much" in larger.why
    assert f"this plan is not possible ({larger.why}); {larger.best.plan} would take" in str(larger)
