"""Changes of compression: recorded once for each part of the model, whatever its number of buckets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rendezvous_words import after, by, formed_pair, killed, kinds, ready

from distroml.api.rendezvous.v1 import rendezvous_pb2 as pb
from distroml.events import given
from distroml.rendezvous import domain as d
from distroml.rendezvous.adapters.messages import report_command
from distroml.rendezvous.domain import events as ev
from distroml.rendezvous.domain.model import scheme_mark, scheme_marks
from distroml.rendezvous.domain.reports import MAX_BUCKET, MAX_BUCKETS

SCHEME = d.ReportScheme(
    at_ms=0,
    sender=by("a"),
    generation=1,
    buckets=(2, 3, 7),
    from_scheme="none",
    to_scheme="int8",
    reason="LinkSlower",
    why="the links do 10 Mbit/s",
    from_step=12,
)
FIRST, LAST = (replace(SCHEME, place=place, sender=by(node)) for place, node in (("pp0of2", "a"), ("pp1of2", "b")))


def test_a_change_of_many_buckets_is_one_event() -> None:
    many = replace(SCHEME, buckets=tuple(range(6000)))
    (event,) = after(*formed_pair()).when(many).outcome
    assert (event.bucket, event.buckets, event.place) == (0, many.buckets, "")
    after(*formed_pair(), many).when(many).then()


def test_later_changes_are_told_from_repeated_ones() -> None:
    for later in (replace(SCHEME, buckets=(4, 5)), replace(SCHEME, from_step=30, buckets=(0,))):
        assert kinds(after(*formed_pair(), SCHEME).when(later).outcome) == ["SchemeChanged"]
    for older in (replace(SCHEME, buckets=(1, 9)), replace(SCHEME, from_step=11, buckets=(9,))):
        after(*formed_pair(), SCHEME).when(older).then()


def test_marks_grow_with_step_and_bucket_however_many_there_are() -> None:
    places = [(1, 5, 0), (1, 5, 4095), (1, 5, 4096), (1, 5, 70_000), (1, 6, 0), (1, 6, 5000), (1, 7, 0), (2, 1, 0)]
    marks = [scheme_mark(*place) for place in places]
    assert sorted(marks) == marks
    assert len(set(marks)) == len(marks)
    assert scheme_mark(1, 22, 0) == (1, 90_112), "as states of earlier releases have it"


def test_each_part_of_the_model_has_its_own_mark() -> None:
    later = replace(FIRST, from_step=40)
    assert kinds(after(*formed_pair(), FIRST, later).when(LAST).outcome) == ["SchemeChanged"]
    for known in (FIRST, later, LAST):
        after(*formed_pair(), FIRST, later, LAST).when(known).then()


def test_marks_of_parts_are_of_one_generation() -> None:
    second = (*formed_pair(), FIRST, LAST, killed("b"), ready("a", 1), ready("b", 1))
    again = replace(SCHEME, generation=2, from_step=1, place="tp0of2")
    state = after(*second, again).state
    assert scheme_marks(state.marks) == {"scheme/tp0of2": scheme_mark(2, 1, 2)}
    for old in (FIRST, LAST, replace(LAST, from_step=99)):
        after(*second, again).when(old).then()
    assert kinds(after(*second).when(replace(LAST, from_step=99)).outcome) == ["SchemeChanged"], "late, and news"


def test_what_was_recorded_of_single_buckets_is_read() -> None:
    told = {field: getattr(SCHEME, field) for field in ("from_scheme", "to_scheme", "reason", "why", "from_step")}
    old = ev.SchemeChanged(at_ms=0, generation=1, bucket=2, **told)
    assert given(d.RENDEZVOUS, old).state.marks == {"scheme": scheme_mark(1, 12, 2)}


@pytest.mark.parametrize("buckets", [(-1, 2), (0, MAX_BUCKET + 1), tuple(range(MAX_BUCKETS + 1))])
def test_buckets_without_bound_are_refused(buckets: tuple[int, ...]) -> None:
    after(*formed_pair()).when(replace(SCHEME, buckets=buckets)).then_rejected("TooLarge")


def test_parts_of_a_model_are_bounded() -> None:
    parts = [replace(SCHEME, place=f"tp{number}of257") for number in range(d.MAX_WORKERS + 1)]
    full = after(*formed_pair(), *parts[:-1])
    full.when(parts[-1]).then_rejected("TooLarge")
    assert kinds(full.when(replace(parts[0], from_step=13)).outcome) == ["SchemeChanged"]
    (event,) = after(*formed_pair()).when(replace(SCHEME, place="x" * 5000)).outcome
    assert len(event.place.encode()) <= 200


def test_the_message_of_an_agent_becomes_a_report() -> None:
    told = pb.SchemeChanged(generation=1, buckets=[7, 2, 2, 3], place="pp1of2", from_step=12, to_scheme="int8")
    report = report_command(pb.WorkerReport(worker="j.1.a.0", generation=1, scheme=told), by("a"), 5)
    assert isinstance(report, d.ReportScheme)
    assert (report.buckets, report.place, report.from_step, report.at_ms) == ((2, 3, 7), "pp1of2", 12, 5)
    single = pb.WorkerReport(worker="j.1.a.0", generation=1, scheme=pb.SchemeChanged(generation=1, bucket=4))
    report = report_command(single, by("a"), 5)
    assert isinstance(report, d.ReportScheme)
    assert report.buckets == (4,)
