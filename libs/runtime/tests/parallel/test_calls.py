"""A spread model is called, evaluated and asked for text like the lone one; where it cannot be, it says so."""

from typing import Any

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

CALLS = "libs.runtime.tests.parallel.calls"
PLANS = {"dp_shard=2": 2, "tp=2": 2, "pp=2": 2, "tp=2,pp=2": 4, "tp=2,dp_shard=2": 4, "pp=2,dp_shard=2": 4}


@pytest.mark.parametrize(
    ("plan", "name", "options"),
    [
        ("dp_shard=2", "llama", {}),
        ("dp_shard=2", "llama", {"use_cache": False}),
        ("dp_shard=2", "t5", {}),  # its encoder is called by itself
        ("dp_shard=2", "gpt2", {"num_beams": 2}),
        ("tp=2", "llama", {}),
        ("tp=2", "llama", {"use_cache": False}),
        ("tp=2", "t5", {}),
        ("pp=2", "llama", {}),
        ("pp=2", "gpt2", {"num_beams": 2}),
        ("pp=2", "t5", {}),
        ("pp=2", "bart", {"num_beams": 2}),
        ("tp=2,pp=2", "llama", {}),
        ("tp=2,dp_shard=2", "bart", {}),
        ("pp=2,dp_shard=2", "gpt2", {}),
    ],
)
def test_generated_text_is_the_lone_models(pool: Pool, plan: str, name: str, options: dict[str, Any]) -> None:
    for answer in pool.run(f"{CALLS}:generate", PLANS[plan], plan=plan, name=name, options=options):
        assert answer.get("text", answer) == answer.get("alone")


def test_keys_and_values_that_would_lie_on_other_ranks_are_refused_on_all_ranks(pool: Pool) -> None:
    for answer in pool.run(f"{CALLS}:generate", 2, plan="pp=2", name="llama", options={"use_cache": True}):
        assert "use_cache=True is not possible under a plan with pp above 1" in answer["raised"]


@pytest.mark.parametrize("plan", ["tp=2", "pp=2", "tp=2,pp=2"])
def test_ranks_of_one_model_choose_the_same_tokens_by_chance(pool: Pool, plan: str) -> None:
    answers = pool.run(f"{CALLS}:generate_after_training", PLANS[plan], plan=plan, name="llama")
    assert all(answer == answers[0] for answer in answers)


def test_ranks_that_share_parameters_may_end_their_texts_at_different_times(pool: Pool) -> None:
    answers = pool.run(f"{CALLS}:generate_unequal", 2, plan="dp_shard=2", name="llama")
    for answer in answers:
        assert answer["text"] == answer["alone"]
    lengths = [len(answer["text"][0]) for answer in answers]
    assert lengths == [3 + 8, 4 + 2]


@pytest.mark.parametrize("plan", PLANS)
def test_evaluation_is_the_lone_models_before_and_after_a_step(pool: Pool, plan: str) -> None:
    for answer in pool.run(f"{CALLS}:measure", PLANS[plan], plan=plan):
        assert max(answer["loss"]) <= 1e-12, answer
        assert max(answer["output"]) <= 1e-12, answer
        assert set(answer["count"]) == {1.0}
