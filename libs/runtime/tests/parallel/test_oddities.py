"""What real models have beside plain layers: every plan still trains them as one process does."""

from pathlib import Path

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

TRAIN = "libs.runtime.tests.parallel.ranks:train"
PLANS = {
    "dp_replicate=2": 2,
    "dp_shard=4": 4,
    "dp_replicate=2,dp_shard=2": 4,
    "tp=2,dp_shard=2": 4,
    "pp=2,dp_shard=2": 4,
    "tp=2,pp=2,dp_replicate=2": 8,
}
QUIRKS = {
    "tied; unused on some ranks, and on all": {"tied": True, "late": True, "unused": True},
    "frozen": {"frozen": True, "tied": True},
}


def check(answers: list[dict]) -> None:
    first = answers[0]
    assert "refused" not in first, first["refused"]
    assert max(first["loss"], first["norm"]) <= 1e-10, first
    assert first["parameter"] <= 1e-9, first
    assert len({answer["bits"] for answer in answers}) == 1, "ranks disagree on losses, norms or parameters"


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("quirk", QUIRKS)
def test_an_odd_model_trains_as_in_one_process(pool: Pool, plan: str, quirk: str) -> None:
    check(pool.run(TRAIN, PLANS[plan], plan=plan, quirks=QUIRKS[quirk], grad_clip=1.0))


@pytest.mark.parametrize("plan", [plan for plan in PLANS if "tp" not in plan])
def test_batches_are_normalised_by_microbatch(pool: Pool, plan: str) -> None:
    check(pool.run(TRAIN, PLANS[plan], plan=plan, quirks={"batch_norm": True}))


@pytest.mark.parametrize("microbatch", [1, 2])
@pytest.mark.parametrize("plan", ["dp_shard=2", "tp=2", "pp=2"])
def test_however_many_microbatches_make_a_step(pool: Pool, plan: str, microbatch: int) -> None:
    check(pool.run(TRAIN, 2, plan=plan, quirks={}, microbatch=microbatch, grad_clip=0.1))


@pytest.mark.parametrize(
    ("plan", "world_size"),
    [
        ("pp=2,stages=1/3,schedule=gpipe", 2),
        ("pp=2,stages=3/1,schedule=1f1b", 2),
        ("pp=2,stages=1/1/1/2,schedule=interleaved", 2),
        ("pp=2,stages=2/1/1/1,schedule=zero_bubble", 2),
        ("pp=4,stages=1/1/2/1,schedule=gpipe", 4),
        ("pp=4,stages=2/1/1/1,schedule=1f1b", 4),
        ("pp=4,stages=1/1/1/2,schedule=zero_bubble", 4),
    ],
)
def test_every_schedule_on_uneven_stages(pool: Pool, plan: str, world_size: int) -> None:
    blocks = sum(map(int, plan.split("stages=")[1].split(",")[0].split("/")))
    check(pool.run(TRAIN, world_size, plan=plan, quirks={"blocks": blocks, "tied": True}, grad_clip=1.0))


@pytest.mark.parametrize("plan", ["dp_replicate=2", "dp_shard=2", "pp=2", "pp=2,dp_shard=2"])
def test_running_statistics_are_averaged_over_shares_of_the_samples(pool: Pool, plan: str) -> None:
    """Those of the lone model, which sees each microbatch, on all ranks that hold them."""
    for answer in pool.run("libs.runtime.tests.parallel.ranks:statistics", PLANS.get(plan, 2), plan=plan):
        assert answer["held"]
        assert answer["error"] <= 1e-12


@pytest.mark.parametrize(
    ("plan", "world_size", "quirks", "said"),
    [
        ("pp=4", 4, {"frozen": True}, "all parameters of stage 0 are frozen"),
        ("pp=4", 4, {"blocks": 3}, "the nearest that works: pp=3"),
        ("tp=4", 4, {"width": 3, "blocks": 2}, "tp=4 is not possible"),
        ("tp=2", 2, {"batch_norm": True}, "use tp=1"),
    ],
)
def test_what_cannot_be_divided_is_refused_on_all_ranks(
    pool: Pool, plan: str, world_size: int, quirks: dict, said: str
) -> None:
    told = {answer["refused"] for answer in pool.run(TRAIN, world_size, plan=plan, quirks=quirks)}
    assert len(told) == 1
    assert said in told.pop()


@pytest.mark.parametrize("way", ["flat", "hierarchical"])
@pytest.mark.parametrize("hosts", ["aabb", "abab"])
def test_sums_between_hosts_train_as_one_process(pool: Pool, tmp_path: Path, hosts: str, way: str) -> None:
    check(pool.run("libs.runtime.tests.parallel.ranks:on_hosts", 4, hosts=hosts, way=way, cache=str(tmp_path)))
