from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from distroml.api.common.v1 import common_pb2
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import job_plan
from distroml.cli.replay_commands import event_line
from distroml.planner import Plan

MIB = 1 << 20


def plan(**more: object) -> t.JobPlan:
    return t.JobPlan(
        generation=2,
        plan="pp=2,accum=8",
        predicted_step_seconds=0.24,
        predicted_peak_bytes_per_rank=477 * MIB,
        reasons=["one rank cannot hold it"],
        binding="the bubble: 18%",
        others=[t.OtherPlan(plan="tp=2", step_seconds=0.3, reason="25% slower: links"), t.OtherPlan(plan="dp_shard=2")],
        **more,  # pyright: ignore[reportArgumentType]
    )


def test_a_plan_that_is_not_measured_yet():
    assert list(job_plan.lines(plan())) == [
        "plan of generation 2: pp=2,accum=8",
        "  - one rank cannot hold it",
        "  what binds: the bubble: 18%",
        "  step: predicted 240 ms, not measured yet",
        "  memory of a rank: predicted 477 MiB, not measured yet",
        "  instead of tp=2 (300 ms): 25% slower: links",
        "  instead of dp_shard=2 (not possible): ",
    ]


def test_prediction_beside_measurement():
    measured = plan(steps=20, step_seconds=0.3, peak_bytes_per_rank=954 * MIB, verdict="MoreMemory", message="kept")
    text = "\n".join(job_plan.lines(measured))
    assert "step: predicted 240 ms, measured 300 ms (+25 %, median of 20 steps)" in text
    assert "memory of a rank: predicted 477 MiB, measured 954 MiB (+100 %, largest peak)" in text
    assert "more memory than predicted: kept" in text
    on_cpu = "\n".join(job_plan.lines(plan(steps=20, step_seconds=2.4, verdict="Slower")))
    assert "measured 2.4 s (10 times, median of 20 steps)" in on_cpu
    assert on_cpu.count("predicted 477 MiB, not measured\n") == 1


def test_a_plan_without_a_prediction_says_nothing_of_costs():
    assert list(job_plan.lines(t.JobPlan(generation=1))) == ["plan of generation 1: one that this release cannot read"]


def event(name: str, **body: object) -> common_pb2.Event:
    return common_pb2.Event(type=f"rendezvous.plan.{name}", position="log:12.0", json=json.dumps(body))


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (
            lambda: event(
                "PlanChosen",
                generation="3",
                plan=Plan(tp=2).to_json(),
                prediction='{"step_seconds": 0.25, "peak_bytes_per_rank": 1048576}',
                best="[]",
                alternatives_hash="ab" * 32,
            ),
            "generation=3 plan=tp=2,accum=1 predicted=250 ms,1 MiB",
        ),
        (lambda: event("PlanChosen", generation="3", plan="{", prediction=""), "generation=3 plan={"),
        (
            lambda: event(
                "PlanMeasured", generation="3", steps="20", step_seconds=0.3, predicted_step_seconds=0.25,
                peak_bytes_per_rank="2097152", predicted_peak_bytes_per_rank="1048576", verdict="Slower", message="why",
            ),
            "generation=3 steps=20 step=300 ms (+20 %) memory=2 MiB (+100 %) verdict=Slower message=why",
        ),
    ],
)  # fmt: skip
def test_plan_events_are_one_line_in_words(event: Callable[[], common_pb2.Event], shown: str):
    assert event_line(event()).partition("rendezvous.plan.")[2].partition(" ")[2].strip() == shown
