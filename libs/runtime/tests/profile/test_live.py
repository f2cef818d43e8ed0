"""Plans of live processes: what they measure, what they agree on, what they keep."""

from pathlib import Path

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

RANKS = "libs.runtime.tests.profile.live_ranks"


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_survey_measures_every_unit_in_every_way_that_plans_need(pool: Pool, tmp_path: Path, world_size: int) -> None:
    answers = pool.run(f"{RANKS}:look", world_size, timeout_s=120, cache=str(tmp_path))
    found = answers[0]
    assert found["untouched"]
    assert all(answer["units"] == found["units"] for answer in answers), "ranks plan with different figures"
    assert all(answer["device"] == found["device"] for answer in answers)
    assert all(forward > 0 and backward >= 0 for *_, forward, backward in found["units"])
    block = next(shape for shape, kind in found["kinds"].items() if kind == "block")
    measured = {(size, tp, again) for shape, size, tp, again, *_ in found["units"] if shape == block}
    sizes = {size for size, _, _ in measured}
    assert 1 in sizes
    degrees = {1, 2} if world_size == 2 else {1, 2, 4}
    # The smallest microbatch always; larger ones as time allows.
    for tp in degrees:
        assert {(1, tp, again) for again in ("none", "selective", "full")} <= measured
    for kind in ("before", "after"):
        shape = next(shape for shape, of in found["kinds"].items() if of == kind)
        assert {tp for one, _, tp, again, *_ in found["units"] if one == shape and again == "none"} == degrees
    assert {collective for collective, *_ in found["rates"]} == {"all_reduce", "all_gather", "reduce_scatter", "send"}
    assert 0 <= found["busy"] <= 1
    tensor_s, divided_s, copy_s, rate = found["device"]
    assert tensor_s > 0
    assert divided_s > 0
    assert copy_s > 0 < rate
    assert not found["reused"]


def test_a_probe_serves_again_and_a_plan_until_a_run_contradicts_it(pool: Pool, tmp_path: Path) -> None:
    arguments = {"cache": str(tmp_path), "wish": "auto", "slower": 3.0}
    answers = pool.run(f"{RANKS}:choose_twice", 2, timeout_s=120, **arguments)
    found = answers[0]
    assert len({answer["plan"] for answer in answers}) == 1
    assert found["again"] == found["plan"]
    assert not found["searched_again"], "the same question is answered from what is kept"
    how, then = found["told"]
    assert "3.00 times" in how
    assert "next generation" in then
    assert found["searched_third"]
    assert max(found["corrected"].values()) == pytest.approx(3.0)
    assert found["alternatives"] > 0
    again = pool.run(f"{RANKS}:look", 2, timeout_s=120, cache=str(tmp_path))[0]
    assert again["reused"]


def test_a_run_that_bears_the_prediction_out_changes_nothing(pool: Pool, tmp_path: Path) -> None:
    arguments = {"cache": str(tmp_path), "wish": "dp_shard=2", "slower": 1.02}
    found = pool.run(f"{RANKS}:choose_twice", 2, timeout_s=120, **arguments)[0]
    assert found["plan"].startswith("dp_shard=2")
    assert found["told"] == ["", ""]
    assert not found["searched_third"]
    assert found["predicted"][0] == found["predicted"][2]


def test_another_precision_is_another_question(pool: Pool, tmp_path: Path) -> None:
    found = pool.run(f"{RANKS}:choose_in", 2, timeout_s=120, cache=str(tmp_path), precisions=["fp32", "bf16", "fp32"])
    first, second, third = found[0]
    assert first
    assert second
    assert first != second
    assert third == "", "the first question is answered from what is kept"


def test_buckets_of_a_given_plan_are_tuned_once_and_alike(pool: Pool, tmp_path: Path) -> None:
    answers = pool.run(f"{RANKS}:buckets", 2, timeout_s=120, cache=str(tmp_path))
    found = answers[0]
    assert found["same"] == [True, True], "nothing but the buckets may change"
    assert {size for answer in answers for size in answer["sizes"]} == {found["sizes"][0]}
    assert found["reason"].startswith(f"bucket_mb={found['sizes'][0]:g}: hides most of the exchange")
    assert found["probed"] == [True, False], "what was measured serves again"
    assert not found["predicted"], "a prediction that fails would have the plan made anew"


def test_a_given_plan_is_predicted_once_a_search_has_surveyed_the_model(pool: Pool, tmp_path: Path) -> None:
    """With compression: timed here, priced, and told of."""
    arguments = {"cache": str(tmp_path), "given": "dp_replicate=2", "compress": "int8"}
    found = pool.run(f"{RANKS}:choose_and_give", 2, timeout_s=120, **arguments)[0]
    assert found["before"] is None
    assert found["given"].startswith("dp_replicate=2")
    assert found["reasons"][0] == "the plan was given, not searched for"
    first, corrected = found["promised"]
    assert corrected > 1.5 * first > 0
    assert found["taught"] == ["a step takes 3.00 times what was predicted", "the next prediction reckons with it"]
    told = found["compression"]
    assert told["scheme"] == "int8"
    assert told["codec_measured"]
    assert told["codec_seconds"] > 0
    assert told["sent_bytes"]["dp_replicate"] < 0.3 * told["dense_bytes"]["dp_replicate"]
    assert found["searched"] is not None
