"""A compressed training that is broken off goes on: in the same world bit for bit where that is asked."""

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from distroml.runtime.compress.control.penalties import RUNGS
from distroml.workerlink import Drain, SchemeChanged
from libs.runtime.tests.scripts.reported_link import FAST_S_PER_BYTE, SLOW_S_PER_BYTE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(100)]

OPTIONS = {"blocks": 2, "global_batch": 16, "microbatch": 4, "dropout": 0.0, "compress": "int4"}


@pytest.mark.parametrize(("victim", "how"), [(0, "kill"), (1, "kill in an exchange")])
def test_whichever_rank_is_killed_the_end_is_bit_equal(
    agent: Callable, straight: Callable, victim: int, how: str
) -> None:
    options = {**OPTIONS, "residuals": "exact"}
    fault = {"rank": victim, "generation": 1, "step": 8, "do": how, "after": "committed-6"}
    broken = agent(2, "broken", fault=fault, **options)
    result = broken.run()
    assert broken.exits == {"1": [-9]}
    assert min(line["step"] for line in broken.steps() if line["generation"] == 2) == 7, "the save of step 6 is used"
    undisturbed = straight(2, **options)
    assert result["parameters"] == undisturbed["parameters"]
    assert result["eval"] == undisturbed["eval"]


@pytest.mark.parametrize(("optimizer", "compress"), [("onebit", "sign"), ("dgc", "topk:0.05")])
def test_optimizers_with_an_exchange_of_their_own_end_bit_equal(agent: Callable, optimizer: str, compress: str) -> None:
    """Their warm-up's end and their velocities come over the restart, too."""
    options = {**OPTIONS, "residuals": "exact", "optimizer": optimizer, "compress": compress}
    straight = agent(2, "straight", **options).run()
    broken = agent(
        2, "broken", fault={"rank": 1, "generation": 1, "step": 5, "do": "kill", "after": "committed-3"}, **options
    )
    result = broken.run()
    assert broken.exits == {"1": [-9]}
    assert min(line["step"] for line in broken.steps() if line["generation"] == 2) == 4
    assert result["parameters"] == straight["parameters"]


@pytest.mark.parametrize(("optimizer", "compress"), [("onebit", "sign"), ("dgc", "topk:0.05")])
def test_they_go_on_in_a_smaller_world(agent: Callable, optimizer: str, compress: str) -> None:
    fault = {"rank": 1, "generation": 1, "step": 8, "do": "kill", "after": "committed-6"}
    broken = agent(2, "broken", fault=fault, **{**OPTIONS, "optimizer": optimizer, "compress": compress})
    broken.start()
    broken.until(broken.ended, "the kill", 60)
    broken.next_generation(set(broken.ended()), "it died", world_size=1)
    del broken.workers[next(iter(broken.ended()))]
    result = broken.finish()
    assert (result["world"], result["step"]) == (1, 12)
    losses = {line["step"]: line["loss"] for line in broken.steps()}
    assert sum(losses[n] for n in range(10, 13)) < 1.5 * sum(losses[n] for n in range(4, 7))


def test_a_gradient_that_is_no_number_ends_the_job_with_its_rank_and_parameter(agent: Callable) -> None:
    fault = {"rank": 1, "generation": 1, "step": 5, "do": "inf"}
    broken = agent(2, "broken", fault=fault, **OPTIONS)
    broken.failures_left = 0
    broken.start()
    broken.until(lambda: any(worker.failed for worker in broken.workers.values()), "a failure", 60)
    told = next(worker.failed for worker in broken.workers.values() if worker.failed)
    assert told.category == "non_finite"
    assert "rank 1 has a gradient of enter.weight that is no finite number in step 5" in told.message
    broken.until(lambda: len(broken.ended()) == 2, "both to end")


@pytest.mark.parametrize(("plan", "workers"), [("dp_replicate=2", 2), ("dp_replicate=2,pp=2", 4)])
def test_auto_goes_by_the_link_and_a_restart_repeats_its_changes(agent: Callable, plan: str, workers: int) -> None:
    """A link of 8 kbit/s becomes a fast one at step 20; steps after that are made again, by the schemes they had."""
    link = {"0": SLOW_S_PER_BYTE, "20": FAST_S_PER_BYTE}
    options = {"compress": "auto", "residuals": "exact", "plan": plan, "link": link, "steps": 30}
    fault = {"rank": 1, "generation": 1, "step": 27, "do": "kill", "after": "committed-20"}
    run = agent(workers, "auto", **{**OPTIONS, **options, "checkpoint_every": 10, "fault": fault})
    result = run.run()
    assert run.exits == {"1": [-9]}
    assert result["step"] == 30
    told = sorted(run.of_kind(SchemeChanged), key=lambda one: (one.place, one.generation, one.from_step, one.buckets))
    assert {one.place for one in told} == ({"pp0of2", "pp1of2"} if "pp=2" in plan else {""})
    begun, later = ([c for c in told if c.generation == 1 and (c.from_step > 1) is late] for late in (False, True))
    assert begun
    assert {one.reason for one in begun} == {"LinkProbed"}
    assert min(RUNGS[one.to_scheme] for one in begun) >= RUNGS["int4"]
    assert [(one.reason, one.to_scheme) for one in later] == [("LinkFaster", "none")] * len(begun)
    assert all(20 < one.from_step < 25 for one in later)
    resumed, again = ([c for c in told if c.generation == 2 and (c.reason != "Resumed") is r] for r in (False, True))
    assert [(one.place, one.buckets, one.to_scheme, one.from_step) for one in resumed] == [
        (one.place, one.buckets, one.to_scheme, 21) for one in begun
    ]
    assert [(one.place, one.buckets, one.to_scheme, one.from_step) for one in again] == [
        (one.place, one.buckets, one.to_scheme, one.from_step) for one in later
    ]
    # Rank 0 may not have come to tell of the last step before the kill.
    made = [
        [(line["step"], line["loss"], line["grad_norm"]) for line in run.steps()
         if line["rank"] == 0 and line["generation"] == generation and 20 < line["step"] < 26]
        for generation in (1, 2)
    ]  # fmt: skip
    assert [step for step, _, _ in made[0]] == [21, 22, 23, 24, 25]
    assert made[0] == made[1]


def resized(run: Any, world_size: int) -> int:
    """Drain this generation, and begin one of another size. Returns the step after which it ended."""
    generation = run.generation
    for name in list(run.workers):
        run.tell(name, Drain(number=generation, reason="resize"))
    run.until(lambda: all(worker.awaits >= generation for worker in run.workers.values()), "all to leave", 60)
    for name in sorted(run.workers)[world_size:]:
        os.kill(run.workers.pop(name).pid, signal.SIGKILL)
    run.form(set(run.workers), world_size)
    return run.committed[-1].step


def test_a_world_of_four_that_has_two_for_a_while_loses_nothing(agent: Callable) -> None:
    """Residuals are handed on twice; no step is made twice, and the loss is that of a world that never changed."""
    options = {**OPTIONS, "steps": 40, "checkpoint_every": 100}
    straight = agent(4, "straight", **options)
    straight_eval = straight.run()["eval"]["loss"]
    run = agent(4, "resized", **{**options, "step_s": 0.1})
    run.start()
    ends = [0]
    for world_size in (2, 4):
        run.until(lambda: any(line["step"] >= ends[-1] + 5 for line in run.steps()), "five steps", 60)
        ends.append(resized(run, world_size))
    first, second = ends[1:]
    result = run.finish()
    assert (result["world"], result["step"]) == (4, 40)
    lines = [line for line in run.steps() if line["rank"] == 0]
    assert [line["step"] for line in lines] == list(range(1, 41)), "no step was made twice"
    assert [line["world"] for line in lines] == [4] * first + [2] * (second - first) + [4] * (40 - second)
    whole = [line["loss"] for line in straight.steps() if line["rank"] == 0]
    assert [line["loss"] for line in lines] == pytest.approx(whole, rel=0.15)
    assert result["eval"]["loss"] == pytest.approx(straight_eval, rel=0.1)
