"""Replicas that step by themselves go on after failures, also from a checkpoint between two meetings."""

import os
import signal
from collections.abc import Callable

import pytest

from distroml.workerlink import Drain

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(100)]

OPTIONS = {"sync_every": 2, "dropout": 0.0}


@pytest.mark.parametrize(("killed_at", "saved_at"), [(11, 9), (8, 6)], ids=["between two meetings", "at a meeting"])
def test_a_killed_rank_leaves_no_trace_in_the_bits(agent: Callable, killed_at: int, saved_at: int) -> None:
    """Parameters, moments of the inner optimizers, residuals and outer momentum are as they were on each rank."""
    options = {**OPTIONS, "compress": "int4"}
    straight_run = agent(2, "straight", **options)
    straight = straight_run.run()
    assert [ref.step for ref in straight_run.committed] == [3, 6, 9, 12]
    fault = {"rank": 1, "generation": 1, "step": killed_at, "do": "kill", "after": f"committed-{saved_at}"}
    broken = agent(2, "broken", fault=fault, **options)
    result = broken.run()
    assert broken.exits == {"1": [-9]}
    assert min(line["step"] for line in broken.steps() if line["generation"] == 2) == saved_at + 1
    assert result["parameters"] == straight["parameters"]
    assert result["eval"] == straight["eval"]


def test_another_world_goes_on_from_the_mean_where_a_drain_came_between_meetings(agent: Callable) -> None:
    run = agent(3, step_s=0.03, **{**OPTIONS, "steps": 20, "checkpoint_every": 100, "sync_every": 8})
    run.start()
    run.until(lambda: any(line["step"] >= 3 for line in run.steps()), "three steps")
    for name in list(run.workers):
        run.tell(name, Drain(number=1, reason="resize"))
    run.until(lambda: all(worker.awaits >= 1 for worker in run.workers.values()), "all to leave")
    drained_at = run.committed[-1].step
    assert drained_at % 8, "it came between two meetings"
    gone = sorted(run.workers)[2]
    os.kill(run.workers.pop(gone).pid, signal.SIGKILL)
    run.form(set(run.workers), 2)
    result = run.finish()
    assert (result["world"], result["step"]) == (2, 20)
    made = [(line["step"], line["generation"]) for line in run.steps() if line["rank"] == 0]
    assert made == [(n, 1 if n <= drained_at else 2) for n in range(1, 21)], "no step was made twice"
    for number in (drained_at, 20):
        told = {(line["loss"], line["grad_norm"]) for line in run.steps() if line["step"] == number}
        assert len(told) == 1, "loss and norm are of all replicas"
