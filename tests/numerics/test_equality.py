"""A part of the table that is quick enough for every run, in half as many steps; `make numerics` fills all of it."""

import pytest

from tests.numerics.pool import Pool
from tests.numerics.table import PLANS, SETTINGS, try_out
from tests.numerics.zoo import BY_NAME

pytestmark = pytest.mark.e2e

STEPS = 5


@pytest.mark.timeout(200)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "bert", "t5", "vit"])
def test_a_plan_computes_what_one_process_computes(pool: Pool, name: str, plan: str) -> None:
    cell = try_out(pool, BY_NAME[name], plan, SETTINGS["AdamW, float64"], STEPS)
    assert cell.equal, cell.text


@pytest.mark.timeout(200)
@pytest.mark.parametrize("setting", ["SGD with momentum, float64", "AdamW, float32"])
@pytest.mark.parametrize("plan", ["dp_shard", "tp × dp", "pp × dp_shard"])
def test_the_optimizer_and_the_precision_make_no_difference(pool: Pool, plan: str, setting: str) -> None:
    cell = try_out(pool, BY_NAME["qwen3"], plan, SETTINGS[setting], STEPS)
    assert cell.equal, cell.text
