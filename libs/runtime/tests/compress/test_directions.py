"""A direction that is lost is found after a few samples, however many buckets there are, and in those that lost it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import pytest

from distroml.runtime.compress.control import LADDER, Measured, Seen, State, sampled_bucket
from distroml.runtime.compress.control.estimating import LOOK_EVERY
from distroml.runtime.compress.control.guarding import stepped_back, trips, watched
from distroml.runtime.compress.control.model import Astray, Watched
from libs.runtime.tests.compress.synthetic import mbit

pytestmark = pytest.mark.timeout(60)

LOSSY, LESS_LOSSY = "powersgd:8+int8", "int8"
GOOD, LOST = 0.95, -0.2
SCHEMES = [one.scheme for one in LADDER]


def of(schemes: Sequence[str]) -> State:
    return State(buckets=tuple(map(Watched, schemes)), link=mbit(10))


def course(
    state: State, cosine: Callable[[int, int], float], samples: int, begin: int = 1
) -> tuple[list[int | None], dict[int, int]]:
    """Which bucket each sample was of, and after how many of them each bucket was stepped back, where it was.

    `cosine` is of what `LOSSY` gives in a bucket at a turn; every other scheme's direction is as it should be.
    """
    places: list[int | None] = []
    stepped: dict[int, int] = {}
    for turn in range(begin, begin + samples):
        step = turn * LOOK_EVERY
        place = sampled_bucket(state, step)
        places.append(place)
        seen = [Seen(0.0, 0.0) for _ in state.buckets]
        if place is not None:
            found = cosine(place, turn) if state.schemes[place] == LOSSY else GOOD
            seen[place] = replace(seen[place], cosine=found)
        measured = Measured(step, 0.2, 3.0, tuple(seen))
        state = replace(watched(state, measured), step=step)
        buckets = list(state.buckets)
        for trip in trips(state, measured):
            assert trip.reason == "Direction"
            assert trip.bucket not in stepped
            stepped[trip.bucket] = len(places)
            buckets[trip.bucket] = stepped_back(buckets[trip.bucket], SCHEMES, step)
        state = replace(state, buckets=tuple(buckets))
    return places, stepped


@pytest.mark.parametrize("begin", [1, 2, 17, 400])
@pytest.mark.parametrize(("buckets", "most"), [(1, 3), (2, 8), (6, 6), (400, 6)])
def test_a_scheme_that_loses_its_direction_everywhere_is_left_everywhere_soon(buckets: int, most: int, begin: int):
    _, stepped = course(of([LOSSY] * buckets), lambda bucket, turn: LOST, 20, begin)
    assert set(stepped) == set(range(buckets))
    assert min(stepped.values()) >= 3
    assert max(stepped.values()) <= most


@pytest.mark.parametrize("begin", [1, 2])
@pytest.mark.parametrize(("buckets", "special"), [(1, 0), (6, 2), (6, 5), (400, 100), (400, 399)])
def test_one_special_bucket_is_stepped_back_alone_a_few_samples_after_its_turn(buckets: int, special: int, begin: int):
    places, stepped = course(
        of([LOSSY] * buckets), lambda bucket, turn: LOST if bucket == special else GOOD, 2 * buckets + 8, begin
    )
    assert list(stepped) == [special]
    first = places.index(special)
    assert first < buckets
    assert stepped[special] - first <= 5


def test_neighbours_that_are_special_are_stepped_back_and_no_others():
    _, stepped = course(of([LOSSY] * 400), lambda bucket, turn: LOST if bucket in (100, 101) else GOOD, 900)
    assert set(stepped) == {100, 101}


def test_what_one_scheme_loses_is_no_matter_of_another():
    schemes = [LOSSY, LESS_LOSSY] * 200
    _, stepped = course(of(schemes), lambda bucket, turn: LOST, 20)
    assert set(stepped) == set(range(0, 400, 2))
    assert max(stepped.values()) <= 8


@pytest.mark.parametrize("buckets", [1, 6, 400])
def test_samples_that_are_low_now_and_then_change_nothing(buckets: int):
    _, stepped = course(of([LOSSY] * buckets), lambda bucket, turn: LOST if turn % 3 == 0 else GOOD, 200)
    assert stepped == {}


@pytest.mark.parametrize("buckets", [1, 6, 400])
def test_all_that_are_compressed_take_turns_and_no_others(buckets: int):
    schemes = ["none", LOSSY] * buckets
    places, stepped = course(of(schemes), lambda bucket, turn: GOOD, buckets)
    assert sorted(place for place in places if place is not None) == list(range(1, 2 * buckets, 2))
    assert stepped == {}
    assert all(sampled_bucket(of(schemes), step) is None for step in range(1, LOOK_EVERY))
    assert sampled_bucket(of(["none"] * buckets), LOOK_EVERY) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_no_number_counts_for_nothing(bad: float):
    state = of([LOSSY] * 3)
    seen = (Seen(0.0, 0.0, cosine=bad), Seen(0.0, 0.0), Seen(0.0, 0.0))
    after = watched(state, Measured(8, 0.2, 3.0, seen))
    assert (after.buckets, after.astray) == (state.buckets, ())


def test_what_is_known_of_a_scheme_goes_once_nobody_holds_it():
    nothing = (Seen(0.0, 0.0), Seen(0.0, 0.0))
    for schemes, left in (([LOSSY, "none"], 1), ([LESS_LOSSY, "none"], 0)):
        state = replace(of(schemes), astray=(Astray(LOSSY, (0, 1)),))
        assert len(watched(state, Measured(8, 0.2, 3.0, nothing)).astray) == left


def test_states_are_read_as_they_are_and_as_they_were_before_schemes_were_counted():
    state = replace(of([LOSSY] * 3), astray=(Astray(LOSSY, (0, 2)),))
    kept = msgspec.json.encode(state)
    assert msgspec.json.decode(kept, type=State) == state
    before = msgspec.json.decode(kept)
    del before["astray"]
    assert msgspec.json.decode(msgspec.json.encode(before), type=State) == replace(state, astray=())
