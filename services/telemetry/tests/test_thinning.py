from __future__ import annotations

import math

from distroml.telemetry.domain.thinning import KEEP, LEVELS, Bucket, Pyramid, finite, joined, thinned


def fill(count: int) -> tuple[Pyramid, list[list[Bucket]]]:
    pyramid = Pyramid()
    levels: list[list[Bucket]] = [[] for _ in range(LEVELS)]
    for x in range(1, count + 1):
        for bucket in pyramid.add(x, x * 100, 1, {"loss": float(x)}):
            levels[bucket.level].append(bucket)
    return pyramid, levels


def test_a_level_holds_an_eighth_of_the_one_below_as_far_as_its_buckets_are_closed() -> None:
    _, levels = fill(4096)
    assert len(levels[0]) == 4096
    assert [len(rows) for rows in levels[1:5]] == [512, 63, 7, 0]


def test_no_point_is_lost_or_counted_twice_in_a_joined_history() -> None:
    _, levels = fill(5000)
    history = joined([levels[3], levels[2], levels[1], levels[0]])
    assert sum(b.stats["loss"][0] for b in history) == 5000
    assert sum(b.stats["loss"][1] for b in history) == sum(range(1, 5001))
    assert [b.x for b in history] == sorted({b.x for b in history})


def test_thinning_keeps_count_sum_and_extremes() -> None:
    _, levels = fill(1000)
    rows = thinned(levels[0], 30)
    assert len(rows) <= 30
    assert sum(b.stats["loss"][0] for b in rows) == 1000
    assert min(b.stats["loss"][2] for b in rows) == 1.0
    assert max(b.stats["loss"][3] for b in rows) == 1000.0


def test_a_restored_series_goes_on_as_if_it_had_never_stopped() -> None:
    whole, levels = fill(300)
    expected = [b for x in range(301, 700) for b in whole.add(x, x * 100, 1, {"loss": float(x)})]
    restored = Pyramid()
    for level in reversed(range(LEVELS - 1)):
        end = levels[level + 1][-1].x if levels[level + 1] else -1
        restored.restore([b for b in levels[level] if b.x > end])
    assert restored.last == 300
    found = [b for x in range(301, 700) for b in restored.add(x, x * 100, 1, {"loss": float(x)})]
    assert found == expected


def test_what_is_no_number_stays_out() -> None:
    assert finite({"loss": math.nan, "grad_norm": math.inf, "step_s": 0.1}) == {"step_s": 0.1}


def test_a_million_steps_fit_the_levels() -> None:
    assert KEEP * 8 ** (LEVELS - 1) >= 1_000_000
