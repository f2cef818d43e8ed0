"""What is told of links: by the search for a plan, by the choice of sums, by both, or nothing."""

from __future__ import annotations

import json

from distroml.planner import Sample
from distroml.runtime.comm.algorithms import Arrangement, Choice, Chosen, Timed
from distroml.runtime.parallel import Plan
from distroml.runtime.parallel.remembered import LivePlan
from distroml.runtime.profile.probe import Probed
from distroml.runtime.training.planned import links_told

MEASURED = Choice((Timed(1 << 20, {"flat": 0.02, "hierarchical": 0.01}),), spent_s=0.5)
PROBED = Probed((("node", 2), ("cluster", 2)), {"node": (Sample("all_reduce", 4096, 2, 0.001, 0.0),)}, 2.0, True)


def sums(choice: Choice) -> Chosen:
    return Chosen(Arrangement.of(range(4), list("aabb")), {}, choice)


def test_the_choice_of_sums_is_told_beside_the_probe() -> None:
    told = links_told(3, LivePlan(plan=Plan(), links=PROBED), sums(MEASURED))
    assert told is not None
    assert (told.generation, told.seconds, told.reused) == (3, 2.5, False)
    assert json.loads(told.topology) == {"levels": [["node", 2], ["cluster", 2]], "samples": 1}
    choice = json.loads(told.sums)
    assert choice["choice"] == "hierarchical for all sizes"
    assert choice["sizes"] == [{"bytes": 1 << 20, "pick": "hierarchical", "flat": 0.02, "hierarchical": 0.01}]


def test_each_is_told_without_the_other() -> None:
    probed, chosen = links_told(1, LivePlan(plan=Plan(), links=PROBED), None), links_told(1, None, sums(MEASURED))
    assert probed is not None
    assert (probed.sums, probed.seconds, probed.reused) == ("", 2.0, True)
    assert chosen is not None
    assert (json.loads(chosen.topology)["levels"], chosen.seconds) == ([], 0.5)


def test_nothing_is_told_where_nothing_was_measured() -> None:
    assert links_told(1, LivePlan(plan=Plan()), sums(Choice())) is None
    assert links_told(1, None, None) is None
