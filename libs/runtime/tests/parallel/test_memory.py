"""Recomputation keeps less and changes no bit; mixed precision computes in bfloat16 and keeps float32."""

from functools import cache
from typing import Any

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

MEMORY = "libs.runtime.tests.parallel.memory"
PLANS = {
    "dp_replicate=2": 2,
    "dp_shard=2": 2,
    "tp=2": 2,
    "pp=2": 2,
    "tp=2,pp=2": 4,
    "pp=2,schedule=zero_bubble": 2,
}


@pytest.mark.parametrize("plan", PLANS)
def test_recomputation_changes_no_bit_and_keeps_less(pool: Pool, plan: str) -> None:
    """With dropout, so that masks must be repeated."""
    found = {
        kind: pool.run(f"{MEMORY}:recomputed", PLANS[plan], plan=plan, kind=kind)
        for kind in ("none", "selective", "full")
    }
    for none, selective, full in zip(*found.values(), strict=True):
        assert none["bits"] == selective["bits"] == full["bits"]
        assert full["activations"] == selective["activations"] == 2 * none["activations"] > 0
        assert full["products"] > selective["products"] == none["products"]
        assert full["saved"] < none["saved"] / 2


@cache
def alone(pool: Pool) -> dict[str, Any]:
    """What one rank computes in float32."""
    (right,) = pool.run(f"{MEMORY}:precise", 1, plan="dp_replicate=1", precision="fp32", options={})
    return right


def far(one: list[float], other: list[float]) -> float:
    return max(abs(own / right - 1) for own, right in zip(one, other, strict=True))


@pytest.mark.parametrize("plan", ["dp_replicate=2", "dp_shard=2", "tp=2", "pp=2", "tp=2,pp=2"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_bfloat16_computes_close_to_float32_and_keeps_it(pool: Pool, plan: str, recompute: str) -> None:
    wanted = {"plan": f"{plan},recompute={recompute}", "options": {}}
    mixed = pool.run(f"{MEMORY}:precise", PLANS[plan], precision="bf16", **wanted)
    right = alone(pool)
    assert right["inside"] == ["torch.float32"]
    for answer in mixed:
        assert answer["inside"] == ["torch.bfloat16"]
        assert answer["parameters"] == answer["whole"] == ["torch.float32"]
        assert answer["output"] == "torch.bfloat16"
        assert 1e-6 < far(answer["losses"], right["losses"]) < 0.02
    assert len({answer["bits"] for answer in mixed}) == 1
    told = sum(answer["measured"] for answer in mixed) / (2 if "dp" in plan else 1)
    assert far([told], [right["measured"]]) < 0.02


@pytest.mark.parametrize("plan", ["dp_replicate=2", "tp=2"])
def test_compiled_blocks_train_as_others_do(pool: Pool, plan: str) -> None:
    wanted: dict[str, Any] = {"plan": plan, "precision": "fp32", "timeout_s": 150}
    compiled = pool.run(f"{MEMORY}:precise", PLANS[plan], options={"compiled": True}, **wanted)
    plain = pool.run(f"{MEMORY}:precise", PLANS[plan], options={}, **wanted)
    for one, other in zip(compiled, plain, strict=True):
        assert far(one["losses"], other["losses"]) < 1e-5
    assert len({answer["bits"] for answer in compiled}) == 1
