"""What cannot be trained is refused before training, alike on all ranks, with its cause and what works instead."""

from typing import Any

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("plan", "world_size", "wrong", "said"),
    [
        ("tp=2", 3, {}, ["over 2 workers", "2 or 4 workers would work"]),
        ("dp_replicate=2,pp=2", 3, {}, ["asks for 4 workers", "has 3 worker"]),
        ("dp_shard=2", 2, {"global_batch": 7}, ["global_batch=7", "global_batch=4 or 8"]),
        ("dp_shard=2", 2, {"microbatch": 3}, ["microbatches of 3", "microbatch=2"]),
        (
            "tp=3",
            3,
            {"model": "heads"},
            ["tp=3 is not possible", "heads 4 is not divisible by tp 3", "nearest tp: 2, 4"],
        ),
        ("pp=2", 2, {"model": "flat"}, ["pp", "Flat has no repeated blocks", "dp_replicate and dp_shard alone"]),
        ("tp=2", 2, {"model": "flat"}, ["tp", "Flat has no repeated blocks"]),
        ("dp_shard=2,recompute=full", 2, {"model": "flat"}, ["Flat has no repeated blocks"]),
        ("dp_replicate=2,recompute=full", 2, {"model": "flat"}, ["Flat has no repeated blocks"]),
        ("pp=2", 2, {"model": "deciding"}, ["block blocks.0 runs more than once"]),
        ("pp=2", 2, {"model": "shared"}, ["block blocks.0 runs more than once"]),
        ("pp=2", 2, {"sample": "short"}, ["the forward pass cannot be followed"]),
        ("tp=2", 2, {"sample": "words"}, ["the forward pass cannot be followed"]),
        ("pp=2", 2, {"sample": "lacking"}, ["the forward pass cannot be followed", "tokens"]),
        ("pp=2,schedule=interleaved,stages=1/1/1/1", 2, {"microbatch": 8}, []),
    ],
)
def test_refused(pool: Pool, plan: str, world_size: int, wrong: dict[str, Any], said: list[str]) -> None:
    told = pool.run("libs.runtime.tests.parallel.odd_inputs:refused", world_size, plan=plan, **wrong)
    assert len(set(told)) == 1, told
    assert [words for words in said if words not in told[0]] == []
    assert bool(told[0]) == bool(said)
