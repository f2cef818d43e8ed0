"""The seconds of a pipeline's passes against simulations of its schedules, pass by pass; cuts into stages."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distroml.planner import Plan, Pricer, balanced_stages
from distroml.planner.cost.passes import WEIGHT_SHARE, least_passes_s, passes_s
from distroml.planner.cost.pipeline import fits_schedule, in_flight, sends
from distroml.planner.timeline import timeline
from libs.planner.tests.models import TRAINING, gpt, machines


def passes(schedule, p, v, m, rank):
    """The order of (forward?, chunk, microbatch) on one rank, as the engines run it."""
    size = m // max(1, m // p)  # microbatches of a round

    def at(number, forward):
        chunk = number // size % v
        return (forward, chunk if forward else v - 1 - chunk, number // (size * v) * size + number % size)

    total = m * v
    if schedule == "gpipe":
        return [(True, 0, n) for n in range(m)] + [(False, 0, n) for n in range(m)]
    warm = p - rank - 1 if v == 1 else (v - 1) * size + 2 * (p - rank - 1)
    warm = min(warm, total)
    order = [at(n, True) for n in range(warm)]
    for n in range(total - warm):
        order += [at(warm + n, True), at(n, False)]
    return order + [at(n, False) for n in range(total - warm, total)]


def simulate(schedule, p, v, m, forward, backward):
    """Seconds of a step and most activations in flight on each rank, stage i on rank i % p."""
    done, clock = {}, [0.0] * p
    left = [passes(schedule, p, v, m, rank) for rank in range(p)]
    held, most = [0] * p, [0] * p
    while any(left):
        moved = False
        for rank in range(p):
            while left[rank]:
                way, chunk, n = left[rank][0]
                stage = chunk * p + rank
                last = stage == p * v - 1
                if way:
                    needs = [(True, stage - 1, n)] if stage else []
                else:
                    needs = [(True, stage, n)] if last else [(False, stage + 1, n)]
                if any(need not in done for need in needs):
                    break
                start = max([clock[rank], *(done[need] for need in needs)])
                clock[rank] = done[way, stage, n] = start + (forward if way else backward)[stage]
                held[rank] += 1 if way else -1
                most[rank] = max(most[rank], held[rank])
                left[rank].pop(0)
                moved = True
        assert moved, "the schedule waits for itself"
    return max(clock), most


def weights(backward):
    return [second * WEIGHT_SHARE for second in backward]


def found(schedule, p, m, forward, backward):
    return passes_s(schedule, p, m, forward, backward, weights(backward))


@given(st.sampled_from(["gpipe", "1f1b", "interleaved"]), st.integers(1, 5), st.integers(2, 4), st.data())
def test_passes_take_what_a_simulation_of_their_order_says(schedule, p, v, data):
    v = v if schedule == "interleaved" else 1
    m = data.draw(st.integers(1, p)) if v > 1 else data.draw(st.integers(1, 4 * p))
    f = data.draw(st.lists(st.floats(0.5, 2), min_size=p * v, max_size=p * v))
    b = data.draw(st.lists(st.floats(0.5, 4), min_size=p * v, max_size=p * v))
    assert found(schedule, p, m, f, b) == pytest.approx(simulate(schedule, p, v, m, f, b)[0])


@settings(deadline=None)
@given(
    st.sampled_from(["gpipe", "1f1b", "interleaved", "zero_bubble"]),
    st.integers(2, 6),
    st.integers(2, 4),
    st.integers(1, 12),
    st.data(),
)
def test_passes_take_what_the_timeline_says_however_many_and_uneven(schedule, p, v, rounds, data):
    v = v if schedule in ("interleaved", "zero_bubble") else 1
    m = data.draw(st.integers(1, p)) if rounds == 1 else rounds * p
    f = data.draw(st.lists(st.floats(0.5, 2), min_size=p * v, max_size=p * v))
    b = [second * data.draw(st.floats(1, 3)) for second in f]
    late = [second * data.draw(st.floats(0, 0.6)) for second in b]
    intervals = timeline(schedule, p, m, forward_s=f, backward_s=b, weight_s=late)
    end = max(interval.end_s for interval in intervals)
    # Exact up to a few rounds; from there on they are taken to go on alike.
    assert passes_s(schedule, p, m, f, b, late) == pytest.approx(end, rel=1e-9 if m <= 3 * p else 0.03)
    assert least_passes_s(schedule, p, m, f, b, late) <= end * (1 + 1e-9)


def test_many_microbatches_are_no_more_work_than_a_few():
    f, b = [1.0, 1.5, 1.0, 1.0] * 4, [2.0] * 16
    few, many = (found("interleaved", 4, m, f, b) for m in (400, 400_000))
    assert many / few == pytest.approx(1000, rel=0.01)


@given(p=st.integers(2, 5), v=st.integers(2, 4), rounds=st.integers(1, 4))
def test_equal_chunks_wait_as_narayanan_counts(p, v, rounds):
    """(p-1)/v passes (arXiv 2104.04473, §2.2)."""
    f, b = [1.0] * (p * v), [2.0] * (p * v)
    m = p * rounds
    assert found("interleaved", p, m, f, b) == pytest.approx(3 * v * m + 3 * (p - 1))
    assert simulate("interleaved", p, v, m, f, b)[1][0] == sum(in_flight("interleaved", p, v, m, 0))


def test_zero_bubble_waits_for_forward_passes_only():
    f, b = [1.0] * 4, [2.0] * 4
    assert found("1f1b", 4, 8, f, b) == 8 * 3.0 + 9.0
    assert found("zero_bubble", 4, 8, f, b) == 8 * 3.0 + 3.0
    # What is computed again cannot wait: only the gradients of weights can.
    assert passes_s("zero_bubble", 4, 8, f, [3.0] * 4, [1.0] * 4) == 8 * 4.0 + 6.0


@pytest.mark.parametrize("stages", [(1, 2, 2, 1, 1, 1, 1, 1), (3, 2, 3, 2), (1,) * 10 + (0, 0)])
@pytest.mark.parametrize("schedule", ["interleaved", "zero_bubble"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_price_of_uneven_stages_is_the_timelines(stages, schedule, recompute):
    model = gpt(layers=10)
    plan = Plan(pp=4, dp_replicate=2, stages=stages, schedule=schedule, microbatch=1, recompute=recompute)
    predicted = Pricer(model, machines(), TRAINING, 64).predict(plan)
    intervals = timeline(
        schedule,
        4,
        predicted.microbatches,
        forward_s=[stage.forward_s for stage in predicted.stages],
        backward_s=[stage.backward_s for stage in predicted.stages],
        weight_s=[stage.weight_s for stage in predicted.stages],
    )
    passes = sum(predicted.seconds[part] for part in ("compute", "recompute", "tp", "bubble"))
    assert passes == pytest.approx(max(interval.end_s for interval in intervals), rel=0.02)


@given(st.integers(1, 6), st.integers(1, 12))
def test_activations_in_flight_are_those_of_the_simulation(p, m):
    for schedule in ("gpipe", "1f1b"):
        _, most = simulate(schedule, p, 1, m, [1.0] * p, [2.0] * p)
        assert most == [sum(in_flight(schedule, p, 1, m, rank)) for rank in range(p)]


def test_interleaved_holds_what_korthikanti_counts():
    """L(1 + (p-1)/(pm)) layers' activations on the first stage (arXiv 2205.05198, §4.2.3)."""
    for p, v in ((8, 3), (35, 3), (4, 2)):
        held = sum(in_flight("interleaved", p, v, 64 * p, 0)) / (p * v)
        assert held == pytest.approx(1 + (p - 1) / (p * v))


def test_messages_on_the_critical_path():
    assert sends("1f1b", 1, 1, 8, "torch") == 0
    assert sends("gpipe", 4, 1, 8, "megatron") == 6
    assert sends("1f1b", 4, 1, 8, "megatron") == 6 + 16
    assert sends("interleaved", 4, 2, 8, "megatron") == 6 + 32
    assert sends("gpipe", 4, 1, 8, "torch") == 6 + 16
    assert sends("1f1b", 4, 1, 8, "torch") == 6 + 8
    assert sends("zero_bubble", 4, 2, 8, "torch") == 6 + 16


def test_rounds_must_be_equal():
    assert fits_schedule("interleaved", 4, 2, 8) == ""
    assert fits_schedule("interleaved", 4, 2, 6) == ""
    assert "9 is not divisible by 2" in fits_schedule("interleaved", 4, 2, 9)
    assert fits_schedule("1f1b", 4, 1, 9) == ""


def brute(blocks, stages, before, after):
    """The least slowest stage over every cut."""

    def cuts(count, left):
        if left == 1:
            yield (count,)
            return
        for first in range(1, count - left + 2):
            for rest in cuts(count - first, left - 1):
                yield (first, *rest)

    return min(slowest(blocks, cut, before, after) for cut in cuts(len(blocks), stages))


def slowest(blocks, cut, before, after):
    loads, at = [], 0
    for size in cut:
        loads.append(sum(blocks[at : at + size]))
        at += size
    loads[0] += before
    loads[-1] += after
    return max(loads)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(0, 20),
    st.integers(0, 20),
    st.booleans(),
)
def test_no_cut_is_better_balanced(blocks, stages, before, after, equal):
    if equal:
        blocks = blocks[:1] * len(blocks)
    if len(blocks) < stages:
        with pytest.raises(ValueError, match="cannot make"):
            balanced_stages(blocks, stages, before, after)
        return
    cut = balanced_stages(blocks, stages, before, after)
    assert sum(cut) == len(blocks)
    assert min(cut) >= 1
    assert slowest(blocks, cut, before, after) == brute(blocks, stages, before, after)


def test_equal_blocks_are_cut_evenly_the_rest_going_first():
    assert balanced_stages([1.0] * 10, 4) == (3, 3, 2, 2)
    assert balanced_stages([1.0] * 10, 3, after_s=2.0) == (4, 4, 2)
