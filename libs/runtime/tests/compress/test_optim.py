"""Optimizers that compression changes, against torch's and against the algorithms as their papers write them."""

import pytest
import torch

from distroml.runtime.compress import SimulatedRanks, Turn
from distroml.runtime.compress.codecs import BF16
from distroml.runtime.compress.optim import (
    AdamState,
    FrozenVariance,
    MomentumCorrection,
    OuterNesterov,
    OuterState,
    ratio_at,
)
from distroml.runtime.compress.schemes import Coded, Dense
from libs.runtime.tests.compress.tiny import Few, Grid, gradients, laid_out

LAYOUT = laid_out([(40, 12)], gap=0)
N = LAYOUT.numel


def turn_of(rank: int, world_size: int, step: int, unit: float) -> Turn:
    return Turn(rank, world_size, step, 0, 0, unit)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_correction_as_the_paper_writes_it(nesterov: bool) -> None:
    """Algorithm 1 of Lin et al., by loops over elements; the batch changes from step to step."""
    world_size, ratio, momentum = 2, 0.1, 0.9
    ranks = SimulatedRanks(Coded(Few(ratio)), LAYOUT, world_size)
    correction = MomentumCorrection(momentum, nesterov)
    velocities = [torch.zeros(N) for _ in range(world_size)]
    u = [[0.0] * N for _ in range(world_size)]
    v = [[0.0] * N for _ in range(world_size)]
    for step in range(6):
        unit = (2.0, 32.0)[step % 2]
        flats = gradients(LAYOUT, world_size, step, unit)
        expected = [0.0] * N
        for rank in range(world_size):
            normal = (flats[rank].double() / unit).tolist()
            for i in range(N):
                if nesterov:
                    u[rank][i] = momentum * u[rank][i] + normal[i]
                    v[rank][i] += normal[i] + momentum * u[rank][i]
                else:
                    u[rank][i] = momentum * u[rank][i] + normal[i]
                    v[rank][i] += u[rank][i]
            for i in sorted(range(N), key=lambda i: -abs(v[rank][i]))[: int(ratio * N)]:
                expected[i] += v[rank][i]
                u[rank][i] = v[rank][i] = 0.0
        for flat, velocity in zip(flats, velocities, strict=True):
            correction.before(flat, velocity, unit)
        ranks.exchange(flats, unit)
        for velocity, state in zip(velocities, ranks.states, strict=True):
            correction.after(velocity, state)
        assert torch.allclose(flats[0] / unit, torch.tensor(expected), atol=1e-5)
        for velocity, one in zip(velocities, u, strict=True):
            assert torch.allclose(velocity, torch.tensor(one), atol=1e-5)


def test_a_scheme_without_residuals_is_refused() -> None:
    state = Dense().prepare(LAYOUT, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="keeps residuals"):
        MomentumCorrection().after(torch.zeros(N), state)


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_a_momentum_that_is_none(momentum: float) -> None:
    with pytest.raises(ValueError, match="below 1"):
        MomentumCorrection(momentum)
    with pytest.raises(ValueError, match="below 1"):
        OuterNesterov(4, momentum=momentum)


def test_sparsity_warms_up_as_in_the_paper() -> None:
    ratios = [ratio_at(step, 8, 0.001) for step in range(1, 11)]
    assert ratios == [0.25, 0.25, 0.0625, 0.0625, 0.015625, 0.015625, 0.00390625, 0.00390625, 0.001, 0.001]
    assert ratio_at(1, 0, 0.01) == 0.01
    assert [ratio_at(step, 4, 0.05) for step in range(1, 6)] == [0.25, 0.0625, 0.05, 0.05, 0.05]


def test_one_bit_adam_without_loss_is_adam_then_momentum_over_a_frozen_variance() -> None:
    world_size, warm_up, lr = 3, 5, 0.01
    adam = FrozenVariance(warm_up, eps=1e-8)
    ours, theirs = torch.ones(N), torch.nn.Parameter(torch.ones(N, dtype=torch.float64))
    stock = torch.optim.Adam([theirs], lr=lr)
    state = AdamState.like(ours)
    for step in range(1, 10):
        unit = float(step)
        flats = gradients(LAYOUT, world_size, step, unit)
        total = sum(flat.double() for flat in flats)
        if step <= warm_up:
            theirs.grad = total / unit
            stock.step()
            mean = stock.state[theirs]["exp_avg"].clone()
            frozen = (stock.state[theirs]["exp_avg_sq"] / (1 - 0.999**warm_up)).sqrt() + 1e-8
        else:
            mean = 0.9 * mean + 0.1 * total / unit
            theirs.data -= lr * mean / (1 - 0.9**step) / frozen
        assert adam.lossy(state) is (step > warm_up)
        for rank, flat in enumerate(flats):
            adam.before(flat, state, turn_of(rank, world_size, step, unit))
        SimulatedRanks(Dense(), LAYOUT, world_size).exchange(flats, unit)
        ours -= lr * adam.direction(flats[0], state, unit)
        assert torch.allclose(ours.double(), theirs.data, atol=1e-5)


def test_elements_without_gradients_stay_where_they_are() -> None:
    adam, layout = FrozenVariance(2), laid_out([(100,)], gap=28)
    state, ranks = AdamState.like(torch.zeros(layout.numel)), SimulatedRanks(Coded(Grid()), layout, 2)
    for step in range(1, 6):
        flats = gradients(layout, 2, step)
        for rank, flat in enumerate(flats):
            flat[:10] = 0
            adam.before(flat, state, turn_of(rank, 2, step, 1.0))
        if step == 5:
            for flat in flats:
                flat[5] = 1e-3
        ranks.scheme = Coded(Grid()) if adam.lossy(state) else Dense()
        ranks.exchange(flats)
        direction = adam.direction(flats[0], state, 1.0)
        assert not direction[:10].any()
        assert not direction[100:].any()
        assert direction[10:100].all()
        assert direction.abs().max() < 10


def test_after_the_warm_up_no_element_steps_farther_than_adam_could() -> None:
    """A code gives an element of almost no variance the magnitude of its block."""
    adam = FrozenVariance(2)
    assert adam.longest == pytest.approx(7.27, rel=1e-2)
    assert FrozenVariance(2, betas=(0.99, 0.9)).longest == float("inf")
    state = AdamState.like(torch.zeros(4))
    usual = torch.tensor([1e-6, 1.0, 1.0, 1.0])
    for _ in range(2):
        adam.direction(usual.clone(), state, 1.0)
    direction = adam.direction(torch.tensor([-0.1, 0.1, -0.1, 0.0]), state, 1.0)
    corrected = 0.1 / (1 - 0.9**3)
    assert direction.tolist() == pytest.approx([-adam.longest, corrected, -corrected, 0.0], rel=1e-4)


def test_a_variance_without_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="1 step or more"):
        FrozenVariance(0)


def test_ranks_that_meet_move_by_torchs_nesterov() -> None:
    outer, world_size = OuterNesterov(every=4), 3
    start = torch.linspace(-1, 1, N)
    stock = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([stock], lr=0.7, momentum=0.9, nesterov=True)
    parameters = [start.clone() for _ in range(world_size)]
    states = [OuterState.at(one) for one in parameters]
    for meeting in range(4):
        moves = gradients(LAYOUT, world_size, meeting, 0.1)
        for one, move in zip(parameters, moves, strict=True):
            one -= move
        stock.grad = sum(moves) / world_size
        optimizer.step()
        flats = [outer.difference(one, state) for one, state in zip(parameters, states, strict=True)]
        SimulatedRanks(Dense(), LAYOUT, world_size).exchange(flats, world_size)
        for flat, one, state in zip(flats, parameters, states, strict=True):
            outer.meet(flat, one, state, world_size)
        assert torch.allclose(parameters[0], stock.data, atol=1e-5)
        assert all(torch.equal(one, parameters[0]) for one in parameters)


def test_meeting_at_every_step_without_outer_momentum_is_plain_sgd() -> None:
    outer, lr = OuterNesterov(every=1, lr=1.0, momentum=0.0), 0.1
    parameters, plain = [torch.ones(N), torch.ones(N)], torch.ones(N)
    states = [OuterState.at(one) for one in parameters]
    ranks = SimulatedRanks(Coded(BF16), LAYOUT, 2)
    for step in range(1, 20):
        assert outer.due(step)
        grads = gradients(LAYOUT, 2, step)
        plain -= lr * sum(grads) / 2
        for one, grad in zip(parameters, grads, strict=True):
            one -= lr * grad
        flats = [outer.difference(one, state) for one, state in zip(parameters, states, strict=True)]
        ranks.exchange(flats, unit=2.0)
        for flat, one, state in zip(flats, parameters, states, strict=True):
            outer.meet(flat, one, state, 2)
    # bfloat16 loses 0.4 % of a move, and feedback tells it later: all of the way is right to one move's loss.
    assert torch.allclose(parameters[0], plain, atol=0.004 * lr * 4)


def test_when_ranks_meet() -> None:
    assert [step for step in range(1, 10) if OuterNesterov(every=3).due(step)] == [3, 6, 9]
    with pytest.raises(ValueError, match="every 0"):
        OuterNesterov(every=0)
