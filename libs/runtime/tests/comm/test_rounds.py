"""Rounds of exchanges: driven to their end, right over real ranks, counted on the links that they take."""

from __future__ import annotations

from collections.abc import Callable, Generator
from unittest import mock

import pytest
import torch

from distroml.runtime.comm import rounds
from distroml.runtime.comm.rounds import Peers, drive
from distroml.runtime.compress import Round, TakenBack
from tests.numerics.pool import Pool

RANKS = "libs.runtime.tests.comm.sum_ranks"


def test_a_generator_gets_each_answer_and_is_settled_before_and_after() -> None:
    seen: list[str] = []

    def scheme() -> Generator[Round, torch.Tensor]:
        for number in range(2):
            back = yield Round("sum", torch.full((1,), float(number)))
            seen.append(f"got {float(back):g}")

    def answer(wanted: Round) -> torch.Tensor:
        seen.append(f"asked {float(wanted.payload):g}")
        return wanted.payload + 10

    driven = drive(scheme(), answer, lambda: seen.append("settled"))
    assert driven.rounds == 2
    assert driven.computing_s > 0
    assert seen == [
        *("settled", "asked 0", "settled", "got 10"),
        *("settled", "asked 1", "settled", "got 11", "settled"),
    ]


class Clocks:
    """A wall clock and one of a thread, which go on when told to."""

    def __init__(self) -> None:
        self.wall = self.thread = 0.0

    def pass_(self, wall: float, thread: float) -> None:
        self.wall += wall
        self.thread += thread

    def now(self) -> float:
        return self.wall

    def driven(self, steps: Generator[Round, torch.Tensor], answer: Callable[[Round], torch.Tensor]) -> rounds.Driven:
        with mock.patch.object(rounds.time, "perf_counter", self.now):
            return drive(steps, answer, clock=lambda: self.thread)


def test_computing_and_answers_are_timed_apart() -> None:
    """By two clocks: what a processor does for others while a rank computes is none of its own seconds."""
    clocks = Clocks()

    def scheme() -> Generator[Round, torch.Tensor]:
        for _ in range(2):
            clocks.pass_(wall=6.0, thread=2.0)
            yield Round("sum", torch.zeros(1))

    def answer(wanted: Round) -> torch.Tensor:
        clocks.pass_(wall=5.0, thread=0.0)
        return wanted.payload

    driven = clocks.driven(scheme(), answer)
    assert (driven.computing_s, driven.answering_s) == (4.0, 10.0)


def test_what_a_payload_is_filled_with_is_computing() -> None:
    """It is done while others' may be on their way, and is no part of the answer's seconds."""
    clocks, payload = Clocks(), torch.zeros(1)

    def fill() -> None:
        clocks.pass_(wall=6.0, thread=2.0)
        payload.fill_(7.0)

    def scheme() -> Generator[Round, torch.Tensor]:
        assert float((yield Round("gather", payload, fill=fill))) == 7.0

    def answer(wanted: Round) -> torch.Tensor:
        clocks.pass_(wall=5.0, thread=0.0)
        return wanted.filled()

    driven = clocks.driven(scheme(), answer)
    assert (driven.rounds, driven.computing_s, driven.answering_s) == (1, 2.0, 5.0)


def test_a_generator_hears_that_its_round_was_for_nothing() -> None:
    heard: list[str] = []

    def scheme() -> Generator[Round, torch.Tensor]:
        try:
            yield Round("sum", torch.zeros(1))
        except TakenBack:
            heard.append("taken back")
            raise

    def answer(wanted: Round) -> torch.Tensor:
        raise TakenBack

    with pytest.raises(TakenBack):
        drive(scheme(), answer)
    assert heard == ["taken back"]


def test_a_rank_by_itself_gets_its_own_and_sends_nothing() -> None:
    alone, payload = Peers(None), torch.arange(4.0)
    assert torch.equal(alone.make(Round("sum", payload)), payload)
    for how in ("gather", "scatter"):
        assert torch.equal(alone.make(Round(how, payload)), payload[None])
    assert not alone.take()


@pytest.mark.e2e
@pytest.mark.timeout(120)
def test_rounds_over_hosts_are_right_and_counted_by_level(pool: Pool) -> None:
    answers = pool.run(f"{RANKS}:rounds", 4, hosts=["a", "a", "b", "b"])
    for rank, answer in enumerate(answers):
        assert all(answer["right"].values()), answer["right"]
        crosses = "cluster" if rank in (0, 2) else "node"
        # 800 bytes of bfloat16: to three others by a ring; a quarter to each, of whom one is on the same host.
        assert answer["sent"]["gather"] == {crosses: 2400}
        assert answer["sent"]["scatter"] == {"node": 200, "cluster": 400}
        assert sum(answer["sent"]["sum"].values()) >= 1600
        assert answer["flat"] == {crosses: 2400}
