"""Plans: what they refuse, and where each rank stands."""

import pytest

from distroml.planner import Plan, PlanRefused


@pytest.mark.parametrize("order", [("pp", "dp_replicate", "dp_shard", "tp"), ("tp", "dp_shard", "pp", "dp_replicate")])
def test_every_rank_has_its_own_place(order):
    plan = Plan(dp_replicate=2, dp_shard=3, tp=2, pp=2, stages=(1, 1), order=order)
    places = [plan.coordinate(rank) for rank in range(plan.world_size)]
    assert len({tuple(sorted(place.items())) for place in places}) == 24
    assert [plan.rank_of(place) for place in places] == list(range(24))
    assert places[1][order[-1]] == 1  # the innermost axis joins neighbours


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"tp": 0}, "tp must be above 0"),
        ({"microbatch": 0}, "microbatch must be above 0"),
        ({"schedule": "2f2b"}, "schedule must be one of gpipe"),
        ({"recompute": "some"}, "recompute must be one of none"),
        ({"stages": (2, 2)}, "pp=1 keeps it whole"),
        ({"pp": 2, "stages": (2, 2, 2)}, "dealt out evenly"),
        ({"pp": 2, "stages": (1, 1, 1, 1)}, "need schedule=interleaved"),
        ({"order": ("tp",)}, "order must name each"),
    ],
)
def test_a_contradiction_is_refused(values, why):
    with pytest.raises(PlanRefused, match=why):
        Plan(**values)
