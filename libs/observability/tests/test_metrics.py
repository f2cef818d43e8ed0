from __future__ import annotations

from prometheus_client import CollectorRegistry

from distroml.observability.metrics import counter, described, gauge, histogram
from distroml.observability.recent import RecentValues


def test_every_metric_is_listed_with_what_it_counts():
    registry = CollectorRegistry()
    counter("example_things_total", "Things.", ("kind",), registry)
    gauge("example_level", "Level.", (), registry)
    histogram("example_seconds", "Seconds.", (), registry=registry)
    mine = [(d.name, d.kind, d.help, d.labels) for d in described() if d.name.startswith("example_")]
    assert mine == [
        ("example_level", "gauge", "Level.", ()),
        ("example_seconds", "histogram", "Seconds.", ()),
        ("example_things_total", "counter", "Things.", ("kind",)),
    ]


def test_values_in_use_keep_their_series_and_silent_ones_make_room():
    registry = CollectorRegistry()
    things = counter("example_jobs_total", "Things.", ("job_id", "kind"), registry)
    recent = RecentValues("job_id", (things,), max_values=2, ttl_s=100, hold_s=10)

    def use(job: str, now_s: float) -> bool:
        if not recent.use(job, now_s):
            return False
        for kind in ("a", "b"):
            things.labels(job, kind).inc()
        return True

    def series() -> list[tuple[str, float]]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return [(s.labels["job_id"] + s.labels["kind"], s.value) for s in samples]

    assert [use("x", 0), use("y", 1), use("x", 2), use("z", 3)] == [True, True, True, False]
    assert series() == [("xa", 2), ("xb", 2), ("ya", 1), ("yb", 1)]
    # Nothing was heard of y for longer than a place is held.
    assert use("z", 11.5)
    assert series() == [("xa", 2), ("xb", 2), ("za", 1), ("zb", 1)]
    assert "y" not in recent
    recent.forget(102.5)
    assert series() == [("za", 1), ("zb", 1)]
    assert use("x", 103)
    assert ("xa", 1) in series()
