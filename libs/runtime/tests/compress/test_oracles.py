"""The fast schemes against their naive versions."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from distroml.runtime.compress import Layout, Piece, SimulatedRanks, Turn
from distroml.runtime.compress.codecs import BF16, INT4, INT8, SIGN, TopK
from distroml.runtime.compress.schemes import Coded, Float16, PowerSGD, RandomK, naive
from distroml.runtime.compress.schemes.matrices import as_matrix, divide, refreshed
from distroml.runtime.compress.schemes.randomk import chosen
from distroml.runtime.compress.schemes.seeds import seed_of
from libs.runtime.tests.compress.tiny import Few, Grid, gradients, laid_out

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "codec", [BF16, Float16(), INT8, INT4, SIGN, TopK(0.1), Grid(), Few(0.1)], ids=lambda codec: codec.name
)
@pytest.mark.parametrize(("world_size", "numel"), [(2, 9000), (3, 500), (3, 9000), (5, 40_001)])
def test_codes_in_one_and_two_phases(codec, world_size: int, numel: int) -> None:
    layout = Layout(numel, (Piece("whole", 0, (numel,)),))
    ranks = SimulatedRanks(Coded(codec), layout, world_size, seed=5)
    residuals = [torch.zeros(layout.numel) for _ in range(world_size)]
    owned = None
    for step in (1, 2, 3):
        flats = gradients(layout, world_size, step, 10.0)
        turns = [Turn(rank, world_size, step, 0, 5, 10.0) for rank in range(world_size)]
        raw = [flat.clone() for flat in flats]
        ranks.exchange(flats, 10.0)
        states = ranks.states
        if owned is None and any(state.owned is not None for state in states):
            owned = [torch.zeros(0 if state.owned is None else state.owned.numel()) for state in states]
        assert torch.equal(naive.coded(codec, raw, residuals, owned, turns), flats[0])
        assert all(torch.equal(state.residual, one) for state, one in zip(states, residuals, strict=True))


@settings(deadline=None)
@given(numel=st.integers(1, 5000), share=st.floats(0.001, 1.0), seed=st.integers(0, 2**64 - 1))
def test_random_places(numel: int, share: float, seed: int) -> None:
    count = RandomK(share).count(numel)
    places = chosen(numel, count, seed, CPU).tolist()
    assert places == naive.chosen(numel, count, seed)
    assert places == sorted(set(places))
    assert places[0] >= 0
    assert places[-1] < numel


def test_every_place_is_drawn_about_as_often() -> None:
    counts = torch.zeros(1000)
    for step in range(2000):
        counts[chosen(1000, 100, seed_of(Turn(0, 1, step, 0, 0, 1.0)), CPU)] += 1
    # 2000 draws of chance 0.1: mean 200, standard deviation 13.4.
    assert counts.sum() == 200_000
    assert (counts - 200).abs().max() < 5 * 13.4
    assert 11 < counts.std() < 16


@pytest.mark.parametrize("world_size", [2, 3])
def test_random_k_tells_the_chosen_elements_whole(world_size: int) -> None:
    layout = laid_out([(333,)])
    ranks = SimulatedRanks(RandomK(0.2), layout, world_size, seed=9)
    flats = gradients(layout, world_size, 0)
    true = sum(flats)
    where = naive.chosen(layout.numel, RandomK(0.2).count(layout.numel), seed_of(Turn(0, world_size, 1, 0, 9, 1.0)))
    ranks.exchange(flats)
    expected = torch.zeros(layout.numel)
    expected[where] = true[where]
    assert torch.allclose(flats[0], expected, atol=1e-6)


@pytest.mark.parametrize("world_size", [2, 5])
def test_low_rank_of_each_matrix_by_itself(world_size: int) -> None:
    shapes = [(48, 64), (48, 64), (64, 30), (48, 64), (48, 64), (8, 4, 2, 16)]
    layout, scheme, unit = laid_out(shapes), PowerSGD(3), 4.0
    assert divide(layout, scheme.pays)[1] == []
    ranks = SimulatedRanks(scheme, layout, world_size, seed=1)
    # The naive version starts where the fast one did: its start is told by what it drew at step 1.
    turn = Turn(0, world_size, 1, 0, 1, unit)
    batches, _ = divide(layout, scheme.pays)
    drawn = scheme._starts(batches, ranks.states[0], turn, CPU)
    starts = {
        offset: start
        for batch, starts in zip(batches, drawn, strict=True)
        for offset, start in zip(batch.offsets.tolist(), starts, strict=True)
    }
    residuals = [torch.zeros(layout.numel, dtype=torch.float64) for _ in range(world_size)]
    for step in range(1, 5):
        flats = gradients(layout, world_size, step, unit)
        raw = [flat.clone() for flat in flats]
        ranks.exchange(flats, unit)
        for piece in layout.pieces:
            place, sides = slice(piece.offset, piece.offset + piece.numel), as_matrix(piece.shape)
            matrices = [
                (gradient[place] / unit + residual[place]).view(sides)
                for gradient, residual in zip(raw, residuals, strict=True)
            ]
            told, kept, starts[piece.offset] = naive.low_rank(matrices, starts[piece.offset])
            assert torch.allclose(flats[0][place].view(sides).double(), unit * told, rtol=1e-3, atol=1e-3)
            for residual, one in zip(residuals, kept, strict=True):
                residual[place] = one.flatten()
        for state, residual in zip(ranks.states, residuals, strict=True):
            assert torch.allclose(state.residual.double(), residual, rtol=1e-3, atol=1e-3)


def test_low_rank_finds_a_matrix_of_that_rank() -> None:
    """Two steps of power iteration from nothing; then nothing is left in the residuals."""
    generator = torch.Generator().manual_seed(0)
    layout = laid_out([(60, 80)], gap=0)
    left, right = torch.randn(60, 2, generator=generator), torch.randn(2, 80, generator=generator)
    matrix = (left @ right).flatten()
    ranks = SimulatedRanks(PowerSGD(2), layout, 3)
    for _ in range(2):
        flats = [matrix * share for share in (0.2, 0.3, 0.5)]
        ranks.exchange(flats)
        assert torch.allclose(flats[0], matrix, atol=1e-4)


def test_directions_that_died_are_drawn_anew() -> None:
    columns = torch.tensor([[[3.0, 0.0, torch.nan], [4.0, 0.0, 1.0]]])
    alive = refreshed(columns, 1)
    assert torch.allclose(alive[0, :, 0], torch.tensor([0.6, 0.8]))
    assert alive.isfinite().all()
    assert (alive.norm(dim=1) > 0).all()
    assert torch.equal(alive, refreshed(columns, 1))
    assert not torch.equal(alive, refreshed(columns, 2))


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((), (1, 1)),
        ((7,), (1, 7)),
        ((4, 9), (4, 9)),
        ((64, 32, 3, 3), (64, 288)),
        ((8, 256, 256), (2048, 256)),
        ((64, 1, 3, 3), (64, 9)),
    ],
)
def test_a_tensor_as_a_matrix(shape: tuple[int, ...], sides: tuple[int, int]) -> None:
    assert as_matrix(shape) == sides


def test_matrices_of_a_shape_are_one_batch() -> None:
    layout = laid_out([(16, 8), (3,), (16, 8), (8, 16), (4, 4, 8), (0, 4)], gap=0)
    batches, whole = divide(layout, lambda rows, columns: rows > 1)
    found = [(batch.offsets.tolist(), batch.rows, batch.columns) for batch in batches]
    assert found == [([0, 144, 400], 16, 8), ([272], 8, 16)]
    assert [piece.name for piece in whole] == ["piece1"]
