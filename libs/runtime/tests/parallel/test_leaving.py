"""Codes that leave before ranks agree: what comes of them is what one process makes of all ranks' gradients."""

from __future__ import annotations

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

RANKS = "libs.runtime.tests.parallel.leaving:"


@pytest.mark.parametrize("ranks", [3, 4])
@pytest.mark.parametrize("scheme", ["int8", "bf16", "topk:0.1"])
def test_codes_that_were_for_nothing_are_taken_back_by_all(pool: Pool, scheme: str, ranks: int) -> None:
    for answer in pool.run(f"{RANKS}taken_back", ranks, 60, scheme=scheme):
        assert answer["waited"] == [False, False], "they leave early"
        assert answer["all_nan"]
        assert answer["told"] == ["rank 1 has a gradient of 0 that is no finite number in step 2"]
        assert answer["moved"][0] < 1e-4
        assert answer["moved"][1] == 0.0
        assert max(answer["gaps"]) < 1e-6, "later steps are as if that one had not been"


@pytest.mark.parametrize("ranks", [2, 4])
def test_plain_sampled_and_early_buckets_of_one_step_do_not_meet(pool: Pool, ranks: int) -> None:
    answers = pool.run(f"{RANKS}mixed", ranks, 60)
    for answer in answers:
        assert answer["waited"] == [True, True, False]
        assert [cosine is not None for cosine in answer["cosines"]] == [False, True, False]
        assert answer["cosines"] == answers[0]["cosines"]
        assert max(answer["gaps"]) < 1e-6
