"""Real worker processes under a small agent: whichever rank dies, the end is the same, bit for bit."""

from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(100)]


def committed_ranges(steps: list[dict], total: int) -> list[tuple[int, int, int]]:
    """The sample ranges of the steps on the surviving lineage: of each step, the last generation that made it."""
    last: dict[int, dict] = {}
    for line in steps:
        last[line["step"]] = line
    assert sorted(last) == list(range(1, total + 1))
    return [(last[n]["epoch"], last[n]["from"], last[n]["to"]) for n in range(1, total + 1)]


def assert_each_sample_once(ranges: list[tuple[int, int, int]], size: int, global_batch: int) -> None:
    expected = []
    epoch, at = 0, 0
    for _ in ranges:
        if size - at < global_batch:
            epoch, at = epoch + 1, 0
        expected.append((epoch, at, at + global_batch))
        at += global_batch
    assert ranges == expected


# Of four it is the first or the last: in between are what the one between the others is in a world of three.
@pytest.mark.parametrize(("world_size", "victim"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0), (4, 3)])
def test_whichever_rank_is_killed_the_end_is_bit_equal(
    agent: Callable, straight: Callable, world_size: int, victim: int
) -> None:
    broken = agent(
        world_size, "broken", fault={"rank": victim, "generation": 1, "step": 8, "do": "kill", "after": "committed-6"}
    )
    result = broken.run()
    assert broken.exits == {"1": [-9]}
    assert result["generation"] == 2
    assert len({line["pid"] for line in broken.steps()}) == world_size + 1, "survivors stay in their processes"
    assert min(line["step"] for line in broken.steps() if line["generation"] == 2) == 7, "the save of step 6 is used"
    undisturbed = straight(world_size)
    assert result["parameters"] == undisturbed["parameters"]
    assert result["eval"] == undisturbed["eval"]
    assert result["scores"] == undisturbed["scores"]
    assert_each_sample_once(committed_ranges(broken.steps(), 12), 64, 14)
