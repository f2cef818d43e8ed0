"""A compressed training that is broken off goes on: in the same world bit for bit where that is asked."""

from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(100)]

OPTIONS = {"blocks": 2, "global_batch": 16, "microbatch": 4, "dropout": 0.0, "compress": "int4"}


@pytest.mark.parametrize("victim", [0, 1])
def test_whichever_rank_is_killed_the_end_is_bit_equal(agent: Callable, victim: int) -> None:
    options = {**OPTIONS, "residuals": "exact"}
    straight = agent(2, "straight", **options).run()
    fault = {"rank": victim, "generation": 1, "step": 8, "do": "kill", "after": "committed-6"}
    broken = agent(2, "broken", fault=fault, **options)
    result = broken.run()
    assert broken.exits == {"1": [-9]}
    assert min(line["step"] for line in broken.steps() if line["generation"] == 2) == 7, "the save of step 6 is used"
    assert result["parameters"] == straight["parameters"]
    assert result["eval"] == straight["eval"]


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
def test_a_training_under_the_controller_begins_with_what_it_measures(agent: Callable, plan: str, workers: int) -> None:
    """Link, codecs and a forward pass before step 1, on this machine; the end is that of other trainings."""
    result = agent(workers, "auto", **{**OPTIONS, "compress": "auto", "plan": plan}).run()
    assert result["step"] == 12
    assert result["eval"]["loss"] < 1.0


def test_a_world_that_shrinks_goes_on_from_the_sum_of_residuals(agent: Callable) -> None:
    fault = {"rank": 1, "generation": 1, "step": 8, "do": "kill", "after": "committed-6"}
    straight = agent(2, "straight", **OPTIONS).run()
    broken = agent(2, "broken", fault=fault, **OPTIONS)
    broken.start()
    broken.until(broken.ended, "the kill", 60)
    broken.next_generation(set(broken.ended()), "it died", world_size=1)
    del broken.workers[next(iter(broken.ended()))]
    result = broken.finish()
    assert result["world"] == 1
    assert result["step"] == straight["step"]
    assert result["eval"]["loss"] == pytest.approx(straight["eval"]["loss"], rel=0.2)
