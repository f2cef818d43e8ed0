"""Changes of schemes by place: what ranks remember becomes the same on all of them."""

from __future__ import annotations

from typing import Any, cast

from distroml.runtime.compress.control import Change
from distroml.runtime.elastic import Collectives
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
        {"pp0of2": [change(1, "int8")], "pp1of2": []},
        {"pp0of2": [change(1, "bf16")], "pp1of2": [change(2, "int4")]},
        {"pp1of2": [change(2, "int8")]},
    ]
    everyones = [{place: list(changes) for place, changes in recorded.items()} for recorded in ranks]
    for recorded in ranks:
        share(recorded, cast("Collectives", Told(everyones)))
    assert ranks[0] == ranks[1] == ranks[2] == {"pp0of2": [change(1, "int8")], "pp1of2": [change(2, "int4")]}
