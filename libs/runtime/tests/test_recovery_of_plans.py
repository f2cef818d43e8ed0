"""Under every plan: a killed rank, the same end bit for bit; and another plan goes on where one stopped."""

from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(100)]

OPTIONS = {"blocks": 4, "global_batch": 16, "microbatch": 4, "dtype": "float64"}


@pytest.mark.parametrize("plan", ["dp_shard=2", "tp=2", "pp=2"])
@pytest.mark.parametrize("victim", [0, 1])
def test_whichever_rank_is_killed_the_end_is_bit_equal(
    agent: Callable, straight: Callable, plan: str, victim: int
) -> None:
    fault = {"rank": victim, "generation": 1, "step": 8, "do": "kill", "after": "committed-6"}
    broken = agent(2, "broken", plan=plan, fault=fault, **OPTIONS)
    result = broken.run()
    assert broken.exits == {"1": [-9]}
    assert result["generation"] == 2
    assert min(line["step"] for line in broken.steps() if line["generation"] == 2) == 7, "the save of step 6 is used"
    undisturbed = straight(2, plan=plan, **OPTIONS)
    assert result["parameters"] == undisturbed["parameters"]
    assert result["eval"] == undisturbed["eval"]
    assert result["scores"] == undisturbed["scores"]


@pytest.mark.parametrize("plan", ["dp_shard=2", "tp=2", "pp=2"])
def test_a_plan_trains_as_whole_copies_do(straight: Callable, plan: str) -> None:
    options = {**OPTIONS, "dropout": 0.0}
    copies, divided = straight(2, plan="dp_replicate=2", **options), straight(2, plan=plan, **options)
    for name, values in copies["parameters"].items():
        assert divided["parameters"][name] == pytest.approx(values, rel=1e-9, abs=1e-12), name
    assert divided["eval"] == pytest.approx(copies["eval"], rel=1e-10)
    assert divided["scores"] == pytest.approx(copies["scores"], rel=1e-10)
