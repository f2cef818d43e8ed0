"""A part of the table that is quick enough for every run, in fewer steps; `make numerics` fills all of it.

How a model is split (tp) and cut (pp) follows from its architecture: each is tried with one of every kind. Copies and
shards are of any tensors: of those with two, whose experts get no gradient in some steps and whose parameters are tied.
"""

import pytest

from tests.numerics.pool import Pool
from tests.numerics.table import PLANS, SETTINGS, try_out
from tests.numerics.zoo import BY_NAME

pytestmark = pytest.mark.e2e

# The second one has moments, the third one parameters that these have moved.
STEPS = 3
EVERY_KIND = ("llama", "gpt2", "mixtral", "bert", "t5", "vit")
CELLS = {
    "dp": ("mixtral", "t5"),
    "dp_shard": ("mixtral", "t5"),
    "HSDP": ("gpt2", "vit"),
    "tp": EVERY_KIND,
    "pp": EVERY_KIND,
    "tp × dp": ("llama", "bert"),
    "pp × dp_shard": ("gpt2", "mixtral"),
    "tp × pp × dp": ("llama", "gpt2"),
}


def test_every_plan_of_the_table_has_its_cells() -> None:
    assert CELLS.keys() == PLANS.keys()


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("name", "plan"), [(name, plan) for plan, names in CELLS.items() for name in names])
def test_a_plan_computes_what_one_process_computes(pool: Pool, name: str, plan: str) -> None:
    cell = try_out(pool, BY_NAME[name], plan, SETTINGS["AdamW, float64"], STEPS)
    assert cell.equal, cell.text


@pytest.mark.timeout(200)
@pytest.mark.parametrize("setting", ["SGD with momentum, float64", "AdamW, float32"])
@pytest.mark.parametrize("plan", ["dp_shard", "tp × dp", "pp × dp_shard"])
def test_the_optimizer_and_the_precision_make_no_difference(pool: Pool, plan: str, setting: str) -> None:
    cell = try_out(pool, BY_NAME["qwen3"], plan, SETTINGS[setting], STEPS)
    assert cell.equal, cell.text
