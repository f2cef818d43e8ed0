"""1-bit Adam and DGC under the trainer's own steps: the papers' algorithms, and about the loss of dense ones."""

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

AGAINST = "libs.runtime.tests.parallel.telling:against_alone"
COURSE = "libs.runtime.tests.parallel.telling:course"


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    ("kind", "compress", "clip"), [("onebit", "sign", None), ("dgc", "topk:0.05", 0.2), ("dgc", "topk:0.05", None)]
)
def test_they_are_the_algorithm_in_one_process(
    pool: Pool, kind: str, compress: str, clip: float | None, world_size: int
) -> None:
    """Over the end of the warm-up of both, and of the sparsity's stages."""
    answers = pool.run(AGAINST, world_size, kind=kind, compress=compress, steps=12, clip=clip)
    assert len({answer["bits"] for answer in answers}) == 1
    assert answers[0]["moved"] > 0.05
    assert answers[0]["gap"] < 1e-5 * answers[0]["moved"]


@pytest.mark.parametrize(("kind", "compress", "dense"), [("onebit", "sign", "adamw"), ("dgc", "topk:0.05", "sgd")])
def test_they_reach_about_the_dense_loss(pool: Pool, kind: str, compress: str, dense: str) -> None:
    ours = pool.run(COURSE, 2, kind=kind, compress=compress, steps=120, warm_up=24)[0]
    theirs = pool.run(COURSE, 2, kind=dense, compress="none", steps=120)[0]
    first, last = (sum(theirs["losses"][part]) for part in (slice(12), slice(-12, None)))
    assert last < 0.05 * first
    assert sum(ours["losses"][-12:]) - last < 0.05 * (first - last)
    assert ours["bytes"] < 0.5 * ours["dense_bytes"]


def test_divided_parameters_are_refused(pool: Pool) -> None:
    told = {*pool.run("libs.runtime.tests.parallel.telling:divided", 2, plan_="dp_shard=2")}
    assert len(told) == 1
    assert "OneBitAdam is not possible with the plan" in told.pop()
