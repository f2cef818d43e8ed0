"""Replicas that step by themselves do what local SGD and DiLoCo say, whatever carries their meetings."""

import re

import pytest

from tests.numerics.pool import Pool

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

AGAINST = "libs.runtime.tests.parallel.meeting:against_alone"
REFUSED = "libs.runtime.tests.parallel.meeting:refused"
COURSE = "libs.runtime.tests.parallel.meeting:course"


@pytest.mark.parametrize(
    ("world_size", "every", "lr", "momentum", "grad_clip"),
    [(2, 1, 1.0, 0.0, None), (3, 4, 1.0, 0.0, 0.05), (2, 4, 0.7, 0.9, None), (1, 4, 0.7, 0.9, None)],
    ids=["averaged each step", "local SGD, clipped", "DiLoCo", "DiLoCo, one rank"],
)
def test_they_are_the_algorithm_in_one_process(
    pool: Pool, world_size: int, every: int, lr: float, momentum: float, grad_clip: float | None
) -> None:
    """Ten steps: the last meeting comes early. Samples of a step are shared out unevenly."""
    answers = pool.run(AGAINST, world_size, steps=10, every=every, lr=lr, momentum=momentum, grad_clip=grad_clip)
    assert len({answer["bits"] for answer in answers}) == 1, "after a meeting ranks have the same parameters"
    for answer in answers:
        assert answer["moved"] > 0.1
        assert max(answer["parameters"], answer["losses"], answer["norms"]) <= 1e-12


def test_what_is_saved_between_meetings_is_one_for_others_and_nothing_for_the_same_world(pool: Pool) -> None:
    for found in pool.run("libs.runtime.tests.parallel.meeting:fold", 3, every=4, steps=10):
        assert max(found["model"], found["velocity"], found["anchor"]) <= 1e-12
        assert found["met"] == found["kept"] == found["between"] == 1.0


def test_a_meeting_costs_one_exchange_and_steps_between_none(pool: Pool) -> None:
    often, seldom = (pool.run(AGAINST, 2, steps=8, every=every, lr=0.7, momentum=0.9)[0]["bytes"] for every in (1, 4))
    assert often == 4 * seldom > 0


def test_meetings_go_by_the_scheme_that_is_asked_for(pool: Pool) -> None:
    dense = pool.run(COURSE, 2, steps=40, every=5, compress="none")
    coded = pool.run(COURSE, 2, steps=40, every=5, compress="int8")
    assert coded[0]["bits"] == coded[1]["bits"]
    # Doubles to bytes; scales and padding of a tiny model weigh some.
    assert coded[0]["bytes"]["dp_replicate/node/int8"] < 0.3 * dense[0]["bytes"]["dp_replicate/node/none"]
    first, last = (sum(dense[0]["losses"][part]) for part in (slice(4), slice(-4, None)))
    assert last < 0.7 * first
    assert sum(coded[0]["losses"][-4:]) == pytest.approx(last, rel=0.1)


@pytest.mark.parametrize("plan", ["dp_shard=2", "tp=2"])
def test_divided_replicas_cannot_step_by_themselves(pool: Pool, plan: str) -> None:
    for said in pool.run(REFUSED, 2, wanted=plan, every=4):
        assert re.match(r"sync_every=4 is not possible with the plan", said)


def test_ranks_that_want_to_meet_at_different_times_are_refused(pool: Pool) -> None:
    told = {*pool.run(REFUSED, 2, wanted="dp_replicate=2", every=4, later=1)}
    assert len(told) == 1
    said = told.pop()
    assert "rank 0: " in said
    assert "sync_every=5, outer_lr=0.7, outer_momentum=0.9" in said
