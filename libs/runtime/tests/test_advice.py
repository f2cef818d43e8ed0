"""What a run that compresses nothing is told of compression: in its progress lines, and once as an event."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import cycle
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from distroml.planner import Plan
from distroml.runtime.elastic import World
from distroml.runtime.link import NullLink
from distroml.runtime.parallel import ParallelModel
from distroml.runtime.parallel.buckets import BucketSpec, Segment, Start
from distroml.runtime.training.controlling import AGAIN, COUNTED, SKIPPED
from distroml.runtime.training.reports import Reporter
from distroml.runtime.training.types import StepInfo
from distroml.workerlink import CompressionAdvised

FIRST = SKIPPED + COUNTED
STEP_S = 10.0


class Kept(NullLink):
    """A link whose messages the test looks at."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


class Told:
    """Steps of a run under a plan, and what is said of them."""

    def __init__(
        self, plan: Plan, *, late: bool, rank: int = 0, exchange: object = None, others: Sequence[list[float]] = ()
    ) -> None:
        specs = [
            BucketSpec(torch.float32, torch.device("cpu"), rows * 256, (Segment("weight", 0, 0, (rows, 256)),))
            for rows in (256, 512)
        ]
        starts = [Start(number, spec, late=late) for number, spec in enumerate(specs)]
        parallel = SimpleNamespace(
            plan=plan,
            exchange=exchange,
            gradients=SimpleNamespace(starts=starts),
            sent=dict[str, int],
            collectives=SimpleNamespace(gather=self._gather),
        )
        self._others = others
        self.gathered_at: list[int] = []
        world = World(
            generation=3, rank=rank, world_size=plan.world_size, local_rank=rank, device=torch.device("cpu"),
            store=None, prefix="",
        )  # fmt: skip
        self.link = Kept()
        self._step = 0
        self._reporter = Reporter(
            self.link, world, cast("ParallelModel", parallel), total_steps=10_000, log_every_s=0.0
        )

    def _gather(self, waits: list[float]) -> list[list[float]]:
        """Those of this rank, and of each other rank the same share of its steps over and over."""
        self.gathered_at.append(self._step)
        shares = ([STEP_S * share for _, share in zip(waits, cycle(other), strict=False)] for other in self._others)
        return [waits, *shares]

    def steps(self, count: int, waiting: float) -> None:
        """So many steps that wait for their gradients for a share of their time."""
        for _ in range(count):
            self._step += 1
            self._reporter.step(
                StepInfo(
                    step=self._step,
                    epoch=0,
                    sample_from=0,
                    sample_to=8,
                    loss=2.0,
                    grad_norm=1.0,
                    count=8,
                    learning_rate=0.1,
                    step_s=STEP_S,
                    data_wait_s=0.0,
                    comm_wait_s=waiting * STEP_S,
                )
            )

    @property
    def advised(self) -> list[CompressionAdvised]:
        """The events so far."""
        return [one for one in self.link.sent if isinstance(one, CompressionAdvised)]


@pytest.mark.parametrize(
    ("plan", "late"),
    [
        (Plan(dp_replicate=2), False),
        (Plan(dp_replicate=2, dp_shard=2), False),
        (Plan(dp_replicate=2, tp=2), False),
        (Plan(dp_replicate=2, pp=2, stages=(1, 1)), True),
    ],
    ids=str,
)
def test_a_run_that_waits_is_told_under_every_plan_and_again_for_as_long_as_it_waits(
    plan: Plan, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(plan, late=late)

    def last_line() -> str:
        return caplog.records[-1].getMessage()

    with caplog.at_level(logging.INFO, "distroml.runtime.train"):
        told.steps(FIRST - 1, 0.6)
        assert "auto" not in last_line()
        told.steps(1, 0.6)
        assert "(60 % of a step waits for communication: --compress auto would reach a loss" in last_line()
        (event,) = told.advised
        assert (event.generation, event.step, event.step_seconds, event.exposed_seconds) == (3, FIRST, STEP_S, 6.0)
        assert event.faster > 1.5
        assert event.predicted_step_seconds < STEP_S
        assert event.schemes
        told.steps(AGAIN, 0.01)
        assert "auto" not in last_line(), "the link became fast"
        told.steps(AGAIN, 0.4)
        assert "(40 % of a step waits for communication" in last_line()
    assert told.advised == [event], "once a generation"


@pytest.mark.parametrize(
    ("plan", "options", "waiting"),
    [
        (Plan(dp_replicate=2), {}, 0.09),
        (Plan(dp_replicate=2), {"rank": 1}, 0.6),
        (Plan(dp_replicate=2), {"exchange": object()}, 0.6),
        (Plan(dp_shard=2), {}, 0.6),
        (Plan(dp_replicate=2), {"others": [[0.05]]}, 0.6),
        (Plan(dp_replicate=3), {"others": [[0.05, 0.6], [0.6, 0.05]]}, 0.6),
    ],
    ids=["hides", "another rank", "compresses", "no replicas", "a slow rank", "a slow rank in turn"],
)
def test_nothing_is_said_where_auto_would_not_help(
    plan: Plan, options: dict[str, Any], waiting: float, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(plan, late=False, **options)
    with caplog.at_level(logging.INFO, "distroml.runtime.train"):
        told.steps(FIRST + AGAIN, waiting)
    assert told.advised == []
    assert told.gathered_at == ([FIRST, FIRST + AGAIN] if plan.dp_replicate > 1 and not options.get("exchange") else [])
    assert not any("auto" in record.getMessage() for record in caplog.records)


def test_what_the_rank_that_waits_least_waits_is_the_links(caplog: pytest.LogCaptureFixture) -> None:
    told = Told(Plan(dp_replicate=3), late=False, others=[[0.4], [0.9]])
    with caplog.at_level(logging.INFO, "distroml.runtime.train"):
        told.steps(FIRST, 0.6)
    assert [one.exposed_seconds for one in told.advised] == [pytest.approx(0.4 * STEP_S)]
    assert "(40 % of a step waits for communication" in caplog.text
