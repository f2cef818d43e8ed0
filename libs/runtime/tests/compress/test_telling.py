"""What is said of changes of schemes: few messages, whatever the number of buckets, in the order that tells repeats."""

from __future__ import annotations

import random
from dataclasses import replace

from distroml.runtime.compress.control import NONE, Change
from distroml.runtime.training.telling import MAX_BUCKETS, numbers_text, told


def begun(bucket: int, scheme: str = "int8", step: int = 1, why: str = "the links do 10 Mbit/s") -> Change:
    return Change(bucket, NONE, scheme, "LinkProbed", why, step)


def test_changes_of_one_kind_are_one_message() -> None:
    """A model of 0.77B parameters has some 370 buckets."""
    changes = [begun(bucket) for bucket in range(370)]
    random.Random(0).shuffle(changes)
    (one,) = told(changes, 3, "pp1of2")
    assert one.buckets == tuple(range(370))
    assert (one.generation, one.place, one.from_step) == (3, "pp1of2", 1)
    assert (one.from_scheme, one.to_scheme, one.reason, one.why) == (NONE, "int8", "LinkProbed", changes[0].why)
    assert told([], 3, "") == []


def test_kinds_stand_in_order_of_step_and_first_bucket() -> None:
    changes = [
        begun(3, "int4", step=9),
        begun(5),
        begun(2, "powersgd:4+int8"),
        begun(1),
        replace(begun(0, "powersgd:4+int8"), reason="Resumed"),
    ]
    assert [(one.from_step, one.buckets, one.to_scheme, one.reason) for one in told(changes, 1, "")] == [
        (1, (0,), "powersgd:4+int8", "Resumed"),
        (1, (1, 5), "int8", "LinkProbed"),
        (1, (2,), "powersgd:4+int8", "LinkProbed"),
        (9, (3,), "int4", "LinkProbed"),
    ]


def test_of_two_changes_of_a_bucket_at_a_step_the_later_one_is_told() -> None:
    assert [(one.buckets, one.to_scheme) for one in told([begun(0), begun(1), begun(0, "int4")], 1, "")] == [
        ((0,), "int4"),
        ((1,), "int8"),
    ]


def test_more_buckets_than_an_event_holds_are_told_in_parts() -> None:
    parts = told([begun(bucket) for bucket in range(2 * MAX_BUCKETS + 1)], 1, "")
    assert [(part.buckets[0], len(part.buckets)) for part in parts] == [
        (0, MAX_BUCKETS), (MAX_BUCKETS, MAX_BUCKETS), (2 * MAX_BUCKETS, 1),
    ]  # fmt: skip


def test_buckets_that_a_guard_stopped_for_figures_of_their_own_are_one_message() -> None:
    changes = [begun(bucket, why=f"its residual is {bucket} times") for bucket in range(9)]
    (one,) = told(changes[:2], 1, "")
    assert one.why == "bucket 0: its residual is 0 times; bucket 1: its residual is 1 times"
    (one,) = told(changes, 1, "")
    assert one.why.endswith("; bucket 2: its residual is 2 times; 6 more like these")
    assert one.buckets == tuple(range(9))


def test_buckets_in_words() -> None:
    assert [numbers_text(numbers) for numbers in ((3,), (0, 1, 2), (2, 4, 9))] == [
        "bucket 3", "buckets 0–2", "3 buckets from 2 to 9",
    ]  # fmt: skip
