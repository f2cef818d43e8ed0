"""Dropout masks are a function of seed, step, microbatch and place: the same wherever activations are copies."""

from functools import cache

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PLANS = {
    "dp_replicate=2": 2,
    "dp_shard=2": 2,
    "tp=2": 2,
    "pp=2": 2,
    "tp=2,dp_shard=2": 4,
    "tp=2,pp=2": 4,
}
Step = dict[str, list[str]]


@cache
def masks(pool: Pool, plan: str, world_size: int) -> list[list[Step]]:
    """What each rank keeps in step 1, in step 2 and in step 1 again: the same for every test that asks."""
    return pool.run("libs.runtime.tests.parallel.masks:masks", world_size, plan=plan, steps=(1, 2, 1))


def alike(one: list[str], other: list[str]) -> bool:
    assert one
    assert len(one) == len(other)
    same = {mine == theirs for mine, theirs in zip(one, other, strict=True)}
    assert len(same) == 1
    return same.pop()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_masks_follow_step_microbatch_and_dropout(pool: Pool, plan: str, recompute: str) -> None:
    for first, second, again in masks(pool, f"{plan},recompute={recompute}", PLANS[plan]):
        assert first == again, "the same step drops the same"
        assert first.keys() == second.keys()
        masks_of_all = [set(kept) for step in (first, second) for kept in step.values()]
        for name, kept in first.items():
            assert not set(kept) & set(second[name]), "another step drops something else"
            # Recomputation draws each mask once more, and no other; it ends within a block's last dropout.
            times = 1 if recompute == "none" or name.endswith("after") else 2
            assert sorted(kept.count(mask) for mask in set(kept)) == [times, times], "one mask for each microbatch"
        assert len(set.union(*masks_of_all)) == sum(map(len, masks_of_all)), "no two dropouts drop alike"


@pytest.mark.parametrize("plan", ["dp_replicate=2", "dp_shard=2"])
def test_data_parallel_ranks_drop_apart(pool: Pool, plan: str) -> None:
    one, other = masks(pool, f"{plan},recompute=none", 2)
    assert not any(alike(one[0][name], other[0][name]) for name in one[0])


def test_the_same_share_of_samples_is_dropped_alike_however_parameters_lie(pool: Pool) -> None:
    copies, shards = (masks(pool, f"{plan}=2,recompute=none", 2) for plan in ("dp_replicate", "dp_shard"))
    assert copies == shards


@pytest.mark.parametrize("plan", ["tp=2", "tp=2,pp=2", "tp=2,dp_shard=2"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_tensor_parallel_ranks_drop_copies_alike_and_parts_apart(pool: Pool, plan: str, recompute: str) -> None:
    ranks = masks(pool, f"{plan},recompute={recompute}", PLANS[plan])
    # The innermost axis of the mesh is tp.
    for one, other in zip(ranks[::2], ranks[1::2], strict=True):
        for mine, theirs in zip(one, other, strict=True):
            for name in mine:
                assert alike(mine[name], theirs[name]) == (not name.endswith("inside")), name
    if "dp_shard" in plan:
        assert not any(alike(ranks[0][0][name], ranks[2][0][name]) for name in ranks[0][0])
