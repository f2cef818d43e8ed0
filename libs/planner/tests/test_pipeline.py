"""The pipeline's closed formulas against a simulation of its schedules, pass by pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distroml.planner import balanced_stages
from distroml.planner.cost.pipeline import bubble_s, fits_schedule, in_flight, sends


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


def formula(schedule, p, v, m, forward, backward):
    f, b = ([sum(way[rank::p]) for rank in range(p)] for way in (forward, backward))
    return m * max(map(sum, zip(f, b, strict=True))) + bubble_s(schedule, v, m, f, b, [0.0] * p)


@given(
    st.sampled_from(["gpipe", "1f1b"]),
    st.integers(1, 6),
    st.integers(1, 12),
    st.floats(0.5, 3),
)
def test_equal_stages_take_what_the_formula_says(schedule, p, m, backward):
    f, b = [1.0] * p, [backward] * p
    assert simulate(schedule, p, 1, m, f, b)[0] == pytest.approx(formula(schedule, p, 1, m, f, b))


@given(p=st.integers(2, 5), v=st.integers(2, 4), rounds=st.integers(1, 4))
def test_equal_chunks_take_what_the_formula_says(p, v, rounds):
    f, b = [1.0] * (p * v), [2.0] * (p * v)
    m = p * rounds
    simulated, most = simulate("interleaved", p, v, m, f, b)
    assert simulated == pytest.approx(formula("interleaved", p, v, m, f, b))
    assert most[0] == sum(in_flight("interleaved", p, v, m, 0))


@given(p=st.integers(2, 5), v=st.integers(2, 3), data=st.data())
def test_few_microbatches_leave_chunks_waiting(p, v, data):
    m = data.draw(st.integers(1, p))
    f, b = [1.0] * (p * v), [2.0] * (p * v)
    simulated = simulate("interleaved", p, v, m, f, b)[0]
    assert formula("interleaved", p, v, m, f, b) == pytest.approx(simulated, rel=0.25)


@given(st.sampled_from(["gpipe", "1f1b"]), st.lists(st.integers(4, 12), min_size=2, max_size=5), st.integers(5, 24))
def test_uneven_stages_are_close(schedule, sizes, m):
    f, b = [float(size) for size in sizes], [2.0 * size for size in sizes]
    simulated = simulate(schedule, len(sizes), 1, m, f, b)[0]
    assert formula(schedule, len(sizes), 1, m, f, b) == pytest.approx(simulated, rel=0.08)


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


def test_zero_bubble_waits_for_forward_passes_only():
    f, b = [1.0] * 4, [2.0] * 4
    assert bubble_s("1f1b", 1, 8, f, b, [0.0] * 4) == 9.0
    assert bubble_s("zero_bubble", 1, 8, f, b, [0.0] * 4) == 3.0
    assert bubble_s("zero_bubble", 1, 8, f, [3.0] * 4, [1.0] * 4) == 6.0


def test_messages_on_the_critical_path():
    assert sends("1f1b", 1, 1, 8) == 0
    assert sends("gpipe", 4, 1, 8) == 6
    assert sends("1f1b", 4, 1, 8) == 6 + 16
    assert sends("interleaved", 4, 2, 8) == 6 + 32


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
