from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.planner.timeline import Interval, Pass, bubble, orders, timeline


def spelled(passes: tuple[Pass, ...]) -> str:
    return " ".join(f"{work.stage}{work.kind[0].upper()}{work.microbatch}" for work in passes)


def test_gpipe_runs_all_forwards_first():
    assert spelled(orders("gpipe", 2, 1, 3)[1]) == "1F0 1F1 1F2 1B0 1B1 1B2"


def test_1f1b_takes_turns_once_the_pipeline_is_full():
    first, second = orders("1f1b", 2, 1, 3)
    assert spelled(first) == "0F0 0F1 0B0 0F2 0B1 0B2"
    assert spelled(second) == "1F0 1B0 1F1 1B1 1F2 1B2"


def test_interleaved_goes_through_a_round_per_chunk():
    assert spelled(orders("interleaved", 2, 2, 2)[0]) == "0F0 0F1 2F0 2F1 2B0 2B1 0B0 0B1"
    assert spelled(orders("interleaved", 2, 2, 2)[1]) == "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1"


def test_zero_bubble_keeps_the_gradients_of_weights_for_later():
    first, second = orders("zero_bubble", 2, 1, 3)
    assert spelled(first) == "0F0 0F1 0B0 0W0 0F2 0B1 0W1 0B2 0W2"
    assert spelled(second) == "1F0 1B0 1F1 1B1 1W0 1F2 1B2 1W1 1W2"


@pytest.mark.parametrize(("pp", "microbatches"), [(2, 4), (4, 8), (8, 32)])
def test_the_bubble_is_the_one_of_the_textbook(pp: int, microbatches: int):
    def share(schedule: str, chunks: int = 1) -> float:
        # As many seconds of work in all, however finely cut.
        stages = [1.0 / chunks] * (pp * chunks)
        intervals = timeline(schedule, pp, microbatches, forward_s=stages, backward_s=[2 * s for s in stages])  # pyright: ignore
        return bubble(intervals)

    ideal = (pp - 1) / microbatches
    assert share("gpipe") == pytest.approx(ideal / (1 + ideal))
    assert share("1f1b") == pytest.approx(ideal / (1 + ideal))
    assert share("interleaved", 2) == pytest.approx(ideal / 2 / (1 + ideal / 2))
    assert share("zero_bubble") < 0.6 * share("1f1b")


schedules = st.sampled_from(["gpipe", "1f1b", "interleaved", "zero_bubble"])
seconds = st.floats(0.001, 10)


@given(schedules, st.integers(1, 6), st.integers(1, 3), st.integers(1, 13), st.data(), st.floats(0, 1))
def test_every_pass_runs_once_after_its_input_and_no_rank_does_two_things(
    schedule: str, pp: int, chunks: int, microbatches: int, data: st.DataObject, send_s: float
):
    chunks = 1 if schedule in ("gpipe", "1f1b") else chunks
    stages = pp * chunks
    times = [data.draw(st.lists(seconds, min_size=stages, max_size=stages)) for _ in range(2)]
    found = timeline(schedule, pp, microbatches, forward_s=times[0], backward_s=times[1], send_s=send_s)  # pyright: ignore
    kinds = 3 if schedule == "zero_bubble" else 2
    end = {interval.work: interval.end_s for interval in found}
    start = {interval.work: interval.start_s for interval in found}
    assert len(found) == len(end) == kinds * stages * microbatches
    hop = send_s if pp > 1 else 0.0
    for stage in range(stages):
        for m in range(microbatches):
            forward, backward = Pass("forward", stage, m), Pass("backward", stage, m)
            if stage:
                assert start[forward] >= end[Pass("forward", stage - 1, m)] + hop
                assert start[Pass("backward", stage - 1, m)] >= end[backward] + hop
            assert start[backward] >= end[forward]
    for rank in range(pp):
        mine = [interval for interval in found if interval.rank == rank]
        assert all(a.end_s <= b.start_s for a, b in pairwise(mine))
        assert {interval.work.stage % pp for interval in mine} == {rank}
    assert 0 <= bubble(found) < 1


def test_what_no_schedule_can_run_is_refused():
    with pytest.raises(ValueError, match="one stage per rank"):
        orders("1f1b", 2, 2, 4)
    with pytest.raises(ValueError, match="must be 1 or more"):
        orders("gpipe", 2, 1, 0)
    with pytest.raises(ValueError, match="cannot be dealt out"):
        timeline("1f1b", 2, 2, forward_s=[1.0, 1.0, 1.0], backward_s=[1.0, 1.0, 1.0])
    assert bubble(()) == 0.0
    assert bubble((Interval(0, Pass("forward", 0, 0), 0.0, 0.0),)) == 0.0
