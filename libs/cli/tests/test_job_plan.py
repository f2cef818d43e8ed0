from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import msgspec
import pytest

from distroml.api.common.v1 import common_pb2
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import job_plan
from distroml.cli.errors import CliError
from distroml.cli.replay_commands import event_line
from distroml.objectstore.memory import MemoryObjectStore
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


def test_how_gradients_are_summed_is_said_where_there_was_a_choice():
    told = list(job_plan.lines(plan(sums="hierarchical for all sizes")))
    assert told[3] == "  sums of gradients: hierarchical for all sizes"


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
        (
            lambda: event(
                "LinksProbed", generation="3", topology='{"levels": [["node", 2]]}', seconds=0.5,
                sums='{"choice": "flat to 64 KiB, hierarchical from 512 KiB", "sizes": []}',
            ),
            'generation=3 levels=[["node",2]] took=500 ms sums=flat to 64 KiB, hierarchical from 512 KiB',
        ),
        (lambda: event("LinksProbed", generation="3", topology="[", reused=True), "generation=3 reused=yes"),
    ],
)  # fmt: skip
def test_plan_events_are_one_line_in_words(event: Callable[[], common_pb2.Event], shown: str):
    assert event_line(event()).partition("rendezvous.plan.")[2].partition(" ")[2].strip() == shown


OTHERS = [
    {
        "plan": "pp=2,dp_shard=4",
        "prediction": {"step_seconds": 0.3, "peak_bytes_per_rank": 477 * MIB, "mfu": 0.4},
        "reason": "25.0% slower: the pipeline's bubble +60 ms",
    },
    {"plan": "tp=8", "prediction": None, "reason": "tp=8 does not divide the model's 4 heads"},
]


def kept(store: MemoryObjectStore, others: object) -> t.JobPlan:
    body = json.dumps(others).encode()
    digest = hashlib.sha256(body).hexdigest()
    store.put(f"plans/{digest}.json", body)
    return plan(alternatives_hash=digest)


def test_every_other_plan_is_read_from_its_object():
    store = MemoryObjectStore()
    found = job_plan.others(store, kept(store, OTHERS))
    assert [line for one in found for line in one.lines()] == [
        "  - 300 ms, 477 MiB: pp=2,dp_shard=4",
        "    25.0% slower: the pipeline's bubble +60 ms",
        "  - not possible: tp=8",
        "    tp=8 does not divide the model's 4 heads",
    ]
    assert msgspec.to_builtins(found) == OTHERS
    assert job_plan.others(store, plan()) == []
    assert not [line for line in job_plan.lines(plan(), others=False) if "instead of" in line]


def test_an_object_that_cannot_be_read_is_said_to_be_so():
    store = MemoryObjectStore()
    with pytest.raises(CliError, match="cannot be read"):
        job_plan.others(store, plan(alternatives_hash="ab" * 32))
    told = kept(store, OTHERS)
    store.put(f"plans/{told.alternatives_hash}.json", b"[]")
    with pytest.raises(CliError, match="does not have its hash"):
        job_plan.others(store, told)
    with pytest.raises(CliError, match="another release"):
        job_plan.others(store, kept(store, [{"plan": 3}]))
