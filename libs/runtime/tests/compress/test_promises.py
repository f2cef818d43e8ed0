"""What every scheme promises: one sum, the same bits on every rank; nothing lost; bytes as counted."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from distroml.planner.codes import Buffer, messages
from distroml.planner.compression import parse_spec, share_of
from distroml.runtime.compress import Layout, NotInStep, Piece, SimulatedRanks, State, TakenBack, Turn, parse_scheme
from distroml.runtime.compress.codecs import BF16, FLOAT32, INT4, INT8, SIGN, NonFinite, TopK
from distroml.runtime.compress.schemes import (
    Coded,
    Dense,
    Float16,
    PowerSGD,
    RandomK,
    succeeded,
)
from distroml.runtime.compress.schemes.exchange import in_two_phases, part_of
from distroml.runtime.compress.simulate import run_in_lockstep
from libs.runtime.tests.compress.tiny import Few, Grid, gradients, kept, laid_out

# Three matrices at equal distances, one elsewhere, a convolution, vectors, a number, nothing, and a small matrix.
LAYOUT = laid_out([(64, 96)] * 3 + [(13,), (32, 16, 3, 3), (), (0, 5), (64, 96), (5, 7)])
SMALL = laid_out([(9,), (3, 4)])

SCHEMES = {
    scheme.name + (f"/{scheme.rest.name}" if isinstance(scheme, PowerSGD) else ""): scheme
    for scheme in [
        Dense(),
        Coded(BF16),
        Coded(Float16()),
        Coded(FLOAT32),
        Coded(INT8),
        Coded(INT4),
        Coded(SIGN),
        Coded(TopK(0.05)),
        Coded(TopK(0.01, INT8)),
        Coded(Grid()),
        Coded(Few(0.05)),
        RandomK(0.1),
        RandomK(1.0),
        RandomK(0.1, BF16),
        RandomK(0.4, INT8),
        PowerSGD(1),
        PowerSGD(4),
        PowerSGD(4, BF16),
        PowerSGD(3, INT8, INT8),
        PowerSGD(1000),
    ]
}


def steps_keep_every_promise(scheme, layout: Layout, ranks: SimulatedRanks, units: list[float]) -> torch.Tensor:
    """Exchange one step for each unit; returns the last sum."""
    total = torch.zeros(0)
    for number, unit in enumerate(units):
        flats = gradients(layout, ranks.world_size, seed=number, scale=unit)
        true = sum(flat.double() for flat in flats) + unit * kept(ranks.states, layout.numel)
        sent = ranks.exchange(flats, unit)
        assert sent == scheme.sent_bytes(layout, ranks.world_size)
        assert all(torch.equal(flat, flats[0]) for flat in flats)
        total = flats[0]
        error = total.double() + unit * kept(ranks.states, layout.numel) - true
        assert error.norm() <= 1e-5 * true.norm()
        covered = torch.zeros(layout.numel, dtype=torch.bool)
        for piece in layout.pieces:
            covered[piece.offset : piece.offset + piece.numel] = True
        assert not total[~covered].any()
    return total


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_nothing_is_lost_and_ranks_agree(scheme, world_size: int) -> None:
    """Also with another number of loss terms in each step."""
    ranks = SimulatedRanks(scheme, LAYOUT, world_size, seed=3)
    steps_keep_every_promise(scheme, LAYOUT, ranks, [3.0, 1000.0, 0.5, 7.0])


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_small_and_empty_buffers(scheme, world_size: int) -> None:
    for layout in (SMALL, laid_out([(0,)], gap=0), laid_out([(1,)], gap=0), Layout(64, ())):
        steps_keep_every_promise(scheme, layout, SimulatedRanks(scheme, layout, world_size), [2.0, 5.0])


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 20), max_size=4).map(tuple), max_size=6),
    world_size=st.integers(2, 7),
    scheme=st.sampled_from(list(SCHEMES.values())),
    units=st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=3),
)
def test_any_shapes_at_any_world_size(shapes, world_size: int, scheme, units: list[float]) -> None:
    layout = laid_out(shapes, gap=3)
    steps_keep_every_promise(scheme, layout, SimulatedRanks(scheme, layout, world_size), units)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_zero_gradients_sum_to_zero(scheme) -> None:
    ranks = SimulatedRanks(scheme, LAYOUT, 3)
    flats = [torch.zeros(LAYOUT.numel) for _ in range(3)]
    ranks.exchange(flats)
    assert not flats[0].any()
    assert not kept(ranks.states, LAYOUT.numel).any()
    # Directions that were nothing are none for ever only if nobody draws new ones.
    steps_keep_every_promise(scheme, LAYOUT, ranks, [1.0, 1.0])


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_what_continues_is_equal_on_every_rank(scheme) -> None:
    ranks = SimulatedRanks(scheme, LAYOUT, 3)
    for step in range(2):
        ranks.exchange(gradients(LAYOUT, 3, step))
        for state in ranks.states[1:]:
            assert state.extra.keys() == ranks.states[0].extra.keys()
            assert all(torch.equal(state.extra[name], ranks.states[0].extra[name]) for name in state.extra)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_step_done_again_gives_the_same_bits(scheme) -> None:
    def once() -> torch.Tensor:
        ranks = SimulatedRanks(scheme, LAYOUT, 3, seed=11)
        flats = gradients(LAYOUT, 3, 0)
        ranks.exchange(flats)
        ranks.states = [State(s.residual, s.owned, s.owned_from) for s in ranks.states]
        flats = gradients(LAYOUT, 3, 1)
        ranks.exchange(flats)
        return flats[0]

    assert torch.equal(once(), once())


@pytest.mark.parametrize("after", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("before", [Dense(), Coded(Grid()), PowerSGD(2)], ids=["none", "grid", "powersgd"])
def test_another_scheme_goes_on_with_what_was_kept(before, after) -> None:
    ranks = SimulatedRanks(before, LAYOUT, 3)
    steps_keep_every_promise(before, LAYOUT, ranks, [1.0, 1.0])
    states = [succeeded(after, LAYOUT, 3, torch.device("cpu"), state) for state in ranks.states]
    kept_before = kept(ranks.states, LAYOUT.numel)
    steps_keep_every_promise(after, LAYOUT, SimulatedRanks(after, LAYOUT, 3, step=2, states=states), [4.0, 2.0])
    assert before == Dense() or kept_before.any()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_what_was_kept_outlives_a_smaller_world(scheme) -> None:
    """A world of one tells it all; owners' parts move where the world's size changes."""
    ranks = SimulatedRanks(scheme, LAYOUT, 5)
    steps_keep_every_promise(scheme, LAYOUT, ranks, [1.0])
    for world_size in (3, 2, 1):
        # As a resize does it: the sum over ranks is kept, wherever it lies.
        gone = kept(ranks.states[world_size:], LAYOUT.numel).float()
        states = ranks.states[:world_size]
        states[0].residual = gone if states[0].residual is None else states[0].residual + gone
        ranks = SimulatedRanks(scheme, LAYOUT, world_size, step=ranks.step, states=states)
        steps_keep_every_promise(scheme, LAYOUT, ranks, [2.0, 3.0])
    assert not kept(ranks.states, LAYOUT.numel).any()


@pytest.mark.parametrize(
    "scheme",
    [Coded(BF16), Coded(Grid()), Coded(INT4), Coded(SIGN), Coded(TopK(0.01)), Coded(TopK(0.01, INT8)),
     RandomK(0.01), PowerSGD(4), PowerSGD(4, INT8, INT8)],
    ids=lambda scheme: scheme.name,
)  # fmt: skip
def test_cost_does_not_grow_with_the_world(scheme) -> None:
    """At any size a rank sends at most what it would as one of two, twice: there and back."""
    layout = laid_out([(65_536, 4096)], gap=0)
    costs = {world_size: scheme.sent_bytes(layout, world_size) for world_size in (1, 2, 3, 8, 64, 512)}
    assert costs[1] == 0
    if isinstance(scheme, Coded):
        assert costs[2] <= scheme.codec.size(layout.numel) + 8
    assert all(cost <= 1.1 * 2 * costs[2] for cost in costs.values()), costs


def test_small_buffers_take_one_phase_and_no_more_than_its_bound() -> None:
    assert not in_two_phases([(BF16, 100)], 64)
    assert not in_two_phases([(BF16, 10**6)], 2)
    assert in_two_phases([(BF16, 10**6)], 3)
    for world_size in (3, 9, 100):
        assert Coded(BF16).sent_bytes(laid_out([(50,)], gap=0), world_size) <= 16_384


@given(numel=st.integers(0, 10_000), ranks=st.integers(1, 40))
def test_parts_cover_a_vector_once(numel: int, ranks: int) -> None:
    covered = [place for owner in range(ranks) for place in range(numel)[part_of(numel, ranks, owner)]]
    assert covered == list(range(numel))
    lengths = [len(range(numel)[part_of(numel, ranks, owner)]) for owner in range(ranks)]
    assert lengths == sorted(lengths, reverse=True)


def test_float16_takes_numbers_of_any_size() -> None:
    layout = laid_out([(16,)], gap=0)
    for size in (1e30, 1e-30):
        ranks = SimulatedRanks(Coded(Float16()), layout, 2)
        flats = [torch.tensor([1.0, -0.5, 0.25, 1e-3] * 4) * size for _ in range(2)]
        true = flats[0] + flats[1]
        ranks.exchange(flats)
        assert torch.allclose(flats[0], true, rtol=1e-3, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", [name for name in SCHEMES if name not in ("none", "grid", "few")])
def test_a_gradient_that_is_not_finite_reaches_no_residual(name: str, bad: float) -> None:
    ranks = SimulatedRanks(SCHEMES[name], LAYOUT, 3)
    steps_keep_every_promise(SCHEMES[name], LAYOUT, ranks, [1.0])
    before = kept(ranks.states, LAYOUT.numel)
    flats = gradients(LAYOUT, 3, 0)
    flats[0][70] = bad
    with pytest.raises(NonFinite, match="element 70 "):
        ranks.exchange(flats)
    assert torch.equal(kept(ranks.states, LAYOUT.numel), before)


# Of those that keep anything.
RETURNING = [
    (name, ranks) for name in SCHEMES if name != "none" for ranks in (2, 3) if SCHEMES[name].takes_back(LAYOUT, ranks)
]


@pytest.mark.parametrize(("name", "world_size"), RETURNING)
def test_an_exchange_that_was_for_nothing_is_taken_back(name: str, world_size: int) -> None:
    """But for rounding on ranks that had written their codes, and to the bit on one that had none to write."""
    scheme = SCHEMES[name]
    ranks = SimulatedRanks(scheme, LAYOUT, world_size)
    steps_keep_every_promise(scheme, LAYOUT, ranks, [1.0, 3.0])
    before = [state.residual.clone() for state in ranks.states]
    flats = gradients(LAYOUT, world_size, 7)
    for rank, (flat, state) in enumerate(zip(flats, ranks.states, strict=True)):
        steps = scheme.rounds(flat, LAYOUT, state, Turn(rank, world_size, 3, 0, 0, 2.0, finite=True, tail=16))
        wanted = next(steps)
        assert (wanted.how, wanted.payload.dtype) == ("gather", torch.uint8)
        assert wanted.payload.numel() == (scheme.sent_bytes(LAYOUT, world_size) // (world_size - 1)) + 16
        if rank:
            wanted.payload[-16:] = 7
            wanted.filled()
            assert not torch.equal(state.residual, before[rank])
        with pytest.raises(TakenBack):
            steps.throw(TakenBack())
    assert torch.equal(ranks.states[0].residual, before[0])
    for flat, state, old in zip(flats, ranks.states, before, strict=True):
        assert (state.residual - old).norm() <= 1e-6 * flat.norm()
    steps_keep_every_promise(scheme, LAYOUT, ranks, [1.0])


def test_the_plain_sum_shows_a_gradient_that_is_not_finite() -> None:
    flats = gradients(LAYOUT, 3, 0)
    flats[1][70] = torch.nan
    SimulatedRanks(Dense(), LAYOUT, 3).exchange(flats)
    assert flats[0].isnan().nonzero().tolist() == [[70]]


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="above 0 and up to 1"):
        RandomK(ratio)


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="rank of 1 or more"):
        PowerSGD(0)


def test_a_rank_above_a_matrix_lets_it_go_whole() -> None:
    layout = laid_out([(64, 96)], gap=0)
    assert PowerSGD(1000).sent_bytes(layout, 2) == Coded(BF16).sent_bytes(layout, 2)
    assert PowerSGD(4).sent_bytes(layout, 2) == 4 * 4 * (64 + 96)


def test_a_share_of_elements_is_what_its_decimals_say() -> None:
    """The same for whoever tells, whoever decodes and whoever plans: 0.07 * 100 is above 7 as a product of floats."""
    assert share_of(0.07, 100) == RandomK(0.07).count(100) == TopK(0.07).kept(100) == 7
    assert share_of(0.071, 100) == 8
    assert [share_of(0.01, elements) for elements in (0, 1, 99, 101)] == [0, 1, 1, 2]
    for name in ("randomk:0.07", "randomk:0.07+bf16", "topk:0.07"):
        layout = laid_out([(100,)], gap=0)
        (planned,) = messages(parse_spec(name), Buffer(layout.numel), 2)
        assert parse_scheme(name).sent_bytes(layout, 2) == planned.sent_bytes(2)


@pytest.mark.parametrize("codec", [INT8, BF16, SIGN, Float16()], ids=lambda codec: codec.name)
def test_sums_that_leave_the_range_of_numbers_are_held_at_its_end(codec) -> None:
    """An owner that could not encode its sum would leave the other ranks waiting for it."""
    layout = Layout(100_000, (Piece("whole", 0, (100_000,)),))
    ranks = SimulatedRanks(Coded(codec), layout, 4)
    flats = [torch.full((layout.numel,), 1.5e38) for _ in range(4)]
    ranks.exchange(flats)
    assert all(torch.equal(flat, flats[0]) for flat in flats)
    assert torch.allclose(flats[0], torch.tensor(2.0**127), rtol=1e-2)
    assert all(state.owned is not None and state.owned.isfinite().all() for state in ranks.states)


@pytest.mark.parametrize("scheme", [Coded(INT8), RandomK(0.5), PowerSGD(4)], ids=lambda scheme: scheme.name)
def test_what_is_no_number_is_told_by_its_place_in_the_buffer(scheme) -> None:
    layout = laid_out([(400, 300)], gap=0)
    assert in_two_phases([(INT8, layout.numel)], 3)
    flats = gradients(layout, 3, 0)
    flats[2][100_000] = torch.nan
    with pytest.raises(NonFinite) as broken:
        SimulatedRanks(scheme, layout, 3).exchange(flats)
    assert broken.value.index == 100_000


def test_ranks_that_disagree_are_noticed() -> None:
    layout = laid_out([(40, 40)])
    for other in (Coded(Grid()), Dense(), PowerSGD(1)):
        turns = [Turn(rank, 2, 1, 0, 0, 1.0) for rank in range(2)]
        flats = gradients(layout, 2, 0)
        states = [one.prepare(layout, 2, torch.device("cpu")) for one in (Coded(BF16), other)]
        with pytest.raises(NotInStep):
            run_in_lockstep(
                [
                    one.rounds(flat, layout, state, turn)
                    for one, flat, state, turn in zip((Coded(BF16), other), flats, states, turns, strict=True)
                ]
            )
