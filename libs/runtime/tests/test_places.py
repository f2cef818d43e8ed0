"""Changes of schemes by place: what ranks remember becomes the same on all of them."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any, cast

import pytest

from distroml.planner import Plan
from distroml.runtime.compress.control import Change, Record
from distroml.runtime.elastic import Collectives
from distroml.runtime.parallel import ParallelModel
from distroml.runtime.training.adapting import Adapting
from distroml.runtime.training.controlling import start
from distroml.runtime.training.places import Recorded, share


def change(step: int, scheme: str) -> Change:
    return Change(0, "none", scheme, "Faster", "", step)


class Told:
    """Collectives in which every rank's value is known."""

    def __init__(self, everyones: list[Any]) -> None:
        self._everyones = everyones

    def gather(self, value: Any) -> list[Any]:
        assert value in self._everyones
        return self._everyones


def test_ranks_that_remember_other_changes_agree() -> None:
    ranks: list[Recorded] = [
        {"pp0of2": Record("", 2, [change(1, "int8")]), "pp1of2": Record("", 2)},
        {"pp0of2": Record("", 2, [change(1, "bf16")]), "pp1of2": Record("", 2, [change(2, "int4")])},
        {"pp1of2": Record("", 2, [change(2, "int8")])},
    ]
    everyones = deepcopy(ranks)
    for recorded in ranks:
        share(recorded, cast("Collectives", Told(everyones)))
    assert ranks[0] == ranks[1] == ranks[2]
    assert ranks[0] == {
        "pp0of2": Record("", 2, [change(1, "int8")]), "pp1of2": Record("", 2, [change(2, "int4")]),
    }  # fmt: skip


def test_a_rank_that_missed_a_generation_brings_back_nothing_that_this_one_gave_up() -> None:
    missed = {"": Record("dp_replicate=4", 1, [change(1, "int8"), change(30, "int4")])}
    others = {"": Record("dp_replicate=2", 2, [change(1, "bf16")])}
    everyones = deepcopy([missed, others, {}])
    for recorded in (missed, others):
        share(recorded, cast("Collectives", Told(everyones)))
    assert missed == others == {"": Record("dp_replicate=2", 2, [change(1, "bf16")])}


@pytest.mark.parametrize("fits", [[True, True], [True, False]], ids=["all places go on", "one begins anew"])
def test_where_one_place_begins_anew_all_do(fits: list[bool]) -> None:
    """The forward pass that is timed then goes through all stages."""
    parallel = SimpleNamespace(
        plan=Plan(pp=2, stages=(1, 1)), mesh=SimpleNamespace(world=SimpleNamespace(rank=0)), collectives=Told(fits)
    )
    begun: list[tuple[int, str]] = []
    adapting = SimpleNamespace(
        fits=lambda kept: kept == "state", start=lambda step, kept, _: begun.append((step, kept))
    )
    kept = '{"pp0of2": "state", "pp1of2": "other"}'
    start(cast("Adapting", adapting), cast("ParallelModel", parallel), None, 1, 40, kept)
    assert begun == [(40, "state" if all(fits) else "")]
