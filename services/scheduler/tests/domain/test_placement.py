from __future__ import annotations

import pytest

from distroml.scheduler.domain.placement import Placed, Refused, place, regang
from distroml.scheduler.domain.spec import Placement, Slot, WorkerRange, gang_size


def slots(count: int, kind: str = "cpu") -> tuple[Slot, ...]:
    return tuple(Slot(f"{kind}{index}", kind) for index in range(count))


def shape(outcome: object) -> dict[str, int]:
    assert isinstance(outcome, Placed)
    return {part.node: len(part.slots) for part in outcome.placement}


@pytest.mark.parametrize(
    ("workers", "free", "wanted"),
    [
        (WorkerRange(2, 2), {"a": 4, "b": 2}, {"b": 2}),  # the tightest node that takes all
        (WorkerRange(1, 6), {"a": 4, "b": 3, "c": 2}, {"a": 4, "c": 2}),  # fewest nodes, tight rest
        (WorkerRange(1, 9), {"a": 4, "b": 3}, {"a": 4, "b": 3}),  # as many as there are
        (WorkerRange(2, 2), {"a": 2, "b": 2}, {"a": 2}),  # equal fits: by name
        (WorkerRange(2, 4, per_node=2), {"a": 3, "b": 2, "c": 1}, {"a": 2, "b": 2}),
        (WorkerRange(2, 5, per_node=2), {"a": 8, "b": 2, "c": 3}, {"b": 2, "c": 2}),  # leaves the large hole whole
    ],
)
def test_where_a_gang_goes(workers: WorkerRange, free: dict[str, int], wanted: dict[str, int]):
    offered = {node: slots(count) for node, count in free.items()}
    assert shape(place(workers, offered, offered)) == wanted


@pytest.mark.parametrize(
    ("workers", "free", "capacity", "reason", "ever"),
    [
        (WorkerRange(2, 2), {"a": 1}, {"a": 4}, "WaitingForSlots", True),
        (WorkerRange(2, 2), {}, {"a": 4}, "WaitingForSlots", True),
        (WorkerRange(5, 9), {"a": 4}, {"a": 4}, "ExceedsCapacity", False),
        (WorkerRange(4, 4, per_node=2), {"a": 3, "b": 1}, {"a": 4, "b": 4}, "WaitingForResources", True),
        (WorkerRange(4, 4, per_node=4), {"a": 2}, {"a": 2, "b": 2}, "ExceedsCapacity", False),
        (WorkerRange(1, 1), {}, {}, "NoNodes", False),
    ],
)
def test_why_a_gang_waits(
    workers: WorkerRange, free: dict[str, int], capacity: dict[str, int], reason: str, ever: bool
):
    outcome = place(
        workers,
        {node: slots(count) for node, count in free.items()},
        {node: slots(count) for node, count in capacity.items()},
    )
    assert isinstance(outcome, Refused)
    assert (outcome.reason, outcome.ever) == (reason, ever)
    assert outcome.message


def test_a_gang_is_of_one_kind_and_gpus_go_first():
    offered = {"a": slots(4, "cuda"), "b": slots(8, "cpu")}
    assert shape(place(WorkerRange(2, 4), offered, offered)) == {"a": 4}
    assert shape(place(WorkerRange(6, 6), offered, offered)) == {"b": 6}
    refused = place(WorkerRange(9, 12), offered, offered)
    assert isinstance(refused, Refused)
    assert refused.reason == "ExceedsCapacity"


GANG = (Placement("a", ("cpu0", "cpu1")), Placement("b", ("cpu0",)))


def test_shrinking_empties_the_smallest_parts_first():
    assert shape(regang(WorkerRange(1, 2), GANG, {}, "cpu")) == {"a": 2}
    assert shape(regang(WorkerRange(1, 1), GANG, {}, "cpu")) == {"a": 1}


def test_growing_fills_the_nodes_it_has_before_it_takes_others():
    free = {"a": slots(4)[2:], "c": slots(4)}
    assert shape(regang(WorkerRange(1, 5), GANG, free, "cpu")) == {"a": 4, "b": 1}
    assert shape(regang(WorkerRange(1, 6), GANG, free, "cpu")) == {"a": 4, "b": 1, "c": 1}


def test_growing_takes_what_there_is():
    assert shape(regang(WorkerRange(1, 9), GANG, {"c": slots(1)}, "cpu")) == {"a": 2, "b": 1, "c": 1}
    assert regang(WorkerRange(1, 9), GANG, {}, "cpu") is None
    assert regang(WorkerRange(1, 9), GANG, {"c": slots(3, "cuda")}, "cpu") is None


def test_a_minimum_that_cannot_be_had_waits():
    outcome = regang(WorkerRange(5, 9), GANG, {"c": slots(1)}, "cpu")
    assert isinstance(outcome, Refused)
    assert outcome.reason == "WaitingForSlots"


def test_per_node_holds_while_resizing():
    gang = (Placement("a", ("cpu0", "cpu1")), Placement("b", ("cpu0", "cpu1")))
    assert shape(regang(WorkerRange(2, 3, per_node=2), gang, {}, "cpu")) == {"b": 2}
    free = {"a": slots(8)[2:], "c": slots(1), "d": slots(2)}
    assert shape(regang(WorkerRange(2, 7, per_node=2), gang, free, "cpu")) == {"a": 2, "b": 2, "d": 2}


def test_every_worker_has_a_slot_of_its_own():
    outcome = place(WorkerRange(1, 7), {"a": slots(4), "b": slots(4)}, {"a": slots(4), "b": slots(4)})
    assert isinstance(outcome, Placed)
    assert gang_size(outcome.placement) == 7
    assert len({(part.node, slot) for part in outcome.placement for slot in part.slots}) == 7
