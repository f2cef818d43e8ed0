"""What telemetry knows of a job's compression: few rows for many buckets, and the whole state whatever is forgotten."""

from __future__ import annotations

from functools import reduce

import msgspec
from prometheus_client import CollectorRegistry

from distroml.api.rendezvous.v1 import rendezvous_pb2 as r
from distroml.telemetry.adapters.facts import fact_of
from distroml.telemetry.adapters.live import LiveRow
from distroml.telemetry.adapters.summaries import JobDetail, summary_message
from distroml.telemetry.dashboard.present_compression import change_rows, schemes_now
from distroml.telemetry.domain import facts as f
from distroml.telemetry.domain import schemes
from distroml.telemetry.domain.schemes import MAX_SCHEMES
from distroml.telemetry.domain.summary import marks
from distroml.telemetry.domain.view import JobView, evolve
from distroml.telemetry.history.folding import decode_view
from distroml.telemetry.metrics import TrainingMetrics


def changed(
    step: int, numbers: tuple[int, ...], scheme: str, *, place: str = "", generation: int = 1
) -> f.SchemeChanged:
    fact = fact_of(
        r.SchemeChanged(
            at_ms=step,
            generation=generation,
            bucket=numbers[0],
            buckets=numbers,
            place=place,
            from_scheme="none",
            to_scheme=scheme,
            reason="LinkSlower",
            why="slow",
            from_step=step,
        )
    )
    assert isinstance(fact, f.SchemeChanged)
    return fact


def view_of(*facts: f.JobFact) -> JobView:
    return reduce(evolve, facts, JobView(job="j"))


def test_a_model_of_many_buckets_is_shown_whole() -> None:
    view = view_of(changed(1, tuple(range(370)), "int8"), changed(9, (0, 5, 369), "int4"))
    assert schemes_now(view) == "int8 (367 buckets), int4 (3 buckets)"
    assert [row["buckets"] for row in change_rows(view)] == ["3 buckets", "buckets 0–369"]
    assert len(view.schemes) == 2


def test_schemes_hold_however_many_changes_came_after() -> None:
    """Bucket 3 changed once, before all that is kept."""
    view = view_of(changed(1, (0, 3), "int8"), *(changed(step, (0,), "int4") for step in range(2, MAX_SCHEMES + 9)))
    assert len(view.schemes) == MAX_SCHEMES
    assert {row.scheme: row.buckets for row in view.held} == {"int8": (3,), "int4": (0,)}
    assert schemes_now(view) == "int4 (bucket 0), int8 (bucket 3)"


def test_changes_are_bounded_by_their_buckets(monkeypatch) -> None:
    monkeypatch.setattr(schemes, "MAX_BUCKETS", 10)
    view = view_of(*(changed(step, tuple(range(4)), "int4") for step in range(1, 5)))
    assert [row.from_step for row in view.schemes] == [3, 4]
    assert [row.from_step for row in view_of(changed(1, tuple(range(99)), "int8")).schemes] == [1], "the newest stays"


def test_parts_of_a_model_are_told_apart() -> None:
    first = [changed(1, (0, 1), "int8", place=f"pp{stage}of3") for stage in range(3)]
    view = view_of(*first)
    assert schemes_now(view) == "pp0of3, pp1of3, pp2of3: int8 (buckets 0–1)"
    view = reduce(evolve, [changed(9, (1,), "int4", place="pp1of3")], view)
    assert schemes_now(view) == ("pp0of3, pp2of3: int8 (buckets 0–1); pp1of3: int8 (bucket 0), int4 (bucket 1)")
    assert [row["buckets"] for row in change_rows(view)] == ["pp1of3: bucket 1"] + [
        f"pp{stage}of3: buckets 0–1" for stage in (2, 1, 0)
    ]
    assert len({row["key"] for row in change_rows(view)}) == 4
    assert [mark.text for mark in marks(view, {})] == [
        *(f"pp{stage}of3: buckets 0–1 from step 1: none → int8" for stage in range(3)),
        "pp1of3: bucket 1 from step 9: none → int4",
    ]
    many = view_of(*(changed(1, (0,), "int8", place=f"tp{number}of6") for number in range(6)))
    assert schemes_now(many) == "tp0of6, tp1of6, tp2of6, tp3of6 and 2 more: int8 (bucket 0)"


def test_a_newer_generation_has_schemes_of_its_own() -> None:
    view = view_of(changed(5, (7,), "sign"), changed(1, (0, 1), "int8", generation=2), changed(9, (3,), "int4"))
    assert schemes_now(view) == "int8 (buckets 0–1)", "what an old generation told late changes nothing"
    formed = f.GenerationFormed(at_ms=20, number=3, world_size=1, members=(), mesh=())
    assert schemes_now(evolve(view, formed)) == "in generation 2: int8 (buckets 0–1)"


def test_views_and_events_of_single_buckets_are_read() -> None:
    """Earlier releases told, and kept, each bucket by itself."""
    row = {"generation": 1, "at_ms": 4, "from_step": 4, "from_scheme": "none", "reason": "LinkSlower", "why": "slow"}
    kept = [{**row, "bucket": bucket, "to_scheme": "int8"} for bucket in (0, 1, 2)]
    view = decode_view(msgspec.msgpack.encode({"job": "j", "schemes": kept}))
    assert schemes_now(view) == "int8 (buckets 0–2)"
    assert [row["buckets"] for row in change_rows(view)] == ["buckets 0–2"]
    single = fact_of(r.SchemeChanged(at_ms=9, generation=1, bucket=2, to_scheme="int4", from_step=9))
    assert isinstance(single, f.SchemeChanged)
    assert single.buckets == (2,)
    assert schemes_now(evolve(view, single)) == "int8 (buckets 0–1), int4 (bucket 2)"


def test_the_summary_has_all_that_holds_and_the_last_changes() -> None:
    first = changed(1, (0, 1, 5), "int8", place="pp0of2")
    view = view_of(first, changed(1, (0,), "int4", place="pp1of2"), changed(9, (1,), "int4", place="pp0of2"))
    none = {"recoveries": (), "marks": (), "samples": 0, "dropped_samples": 0, "dropped_lines": 0, "cursor": ""}
    summary = summary_message(JobDetail(view=view, live=LiveRow(), **none))
    assert {(one.place, one.scheme): [*one.buckets] for one in summary.held} == {
        ("pp0of2", "int8"): [0, 5],
        ("pp0of2", "int4"): [1],
        ("pp1of2", "int4"): [0],
    }
    assert {one.generation for one in summary.held} == {1}
    told = [(one.place, one.bucket, [*one.buckets], one.to_scheme, one.from_step) for one in summary.schemes]
    assert told[0] == ("pp0of2", 0, [0, 1, 5], "int8", 1)
    assert told[2] == ("pp0of2", 1, [1], "int4", 9)


def test_the_metric_counts_buckets() -> None:
    registry = CollectorRegistry()
    metrics = TrainingMetrics(max_jobs=1, ttl_s=1, clock_s=lambda: 0, registry=registry)
    metrics.take("j", changed(1, (0, 1, 5), "powersgd:4+int8"))
    metrics.take("j", changed(9, (1,), "powersgd:8+int8"))
    assert registry.get_sample_value("distroml_train_scheme_changes_total", {"scheme": "powersgd"}) == 4
