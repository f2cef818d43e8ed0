"""The demo's verdict: each check can fail."""

from dataclasses import replace
from typing import Any

import pytest

from distroml.cli.demo.report import Facts, build

GOOD = Facts(
    job="job-1",
    job_state="SUCCEEDED",
    events=[
        ("rendezvous.generation.GenerationFormed", {"generation": {"number": "1"}}),
        ("rendezvous.plan.PlanChosen", {"plan": '{"dp_replicate": 2, "tp": 1, "reasons": []}'}),
        ("rendezvous.step.StepRecorded", {"step": "1", "generation": "1"}),
        ("checkpoint.Committed", {"step": "20", "generation": "1", "bytes_written": "100", "bytes_reused": "5"}),
        ("rendezvous.worker.Exited", {"worker": "w1", "signal": 9}),
        ("rendezvous.generation.GenerationFormed", {"generation": {"number": "2"}}),
        ("rendezvous.step.StepRecorded", {"step": "21", "generation": "2"}),
        ("checkpoint.Committed", {"step": "40", "generation": "2", "bytes_written": "50"}),
    ],
    result={"final_loss": 2.0, "heldout_loss": 2.2, "sample": "def", "steps": 50, "world_size": 2},
    killed_worker="w1",
    killed_at_step=30,
    killed_at_ms=1000,
    first_loss=5.5,
    tokens_per_s=100.0,
    first_step_after_kill_ms=2500,
    verified_streams=4,
    verified_events=40,
    differences=0,
    seconds=100.0,
)


def test_a_good_run_passes_with_its_numbers() -> None:
    report = build(GOOD)
    assert report.ok, report.checks
    assert (report.resumed_from_step, report.recovery_s, report.generations) == (20, 1.5, 2)
    assert report.plan == "dp_replicate=2, tp=1"
    assert (report.checkpoint_bytes_written, report.checkpoint_bytes_reused) == (150, 5)


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("job succeeded", {"job_state": "FAILED"}),
        ("worker was killed by SIGKILL", {"killed_worker": "w9"}),
        ("a new generation formed", {"events": GOOD.events[:5]}),
        (
            "training resumed from a committed checkpoint",
            {"events": [e for e in GOOD.events if "Committed" not in e[0]]},
        ),
        ("a step of the new generation was trained", {"first_step_after_kill_ms": 0}),
        ("the loss fell", {"first_loss": 2.1}),
        ("the held-out loss was measured", {"result": {**GOOD.result, "heldout_loss": None}}),
        (
            "training resumed from a committed checkpoint",
            {"events": [*GOOD.events[:6], ("rendezvous.step.StepRecorded", {"step": "1", "generation": "2"})]},
        ),
        (
            "training resumed from a committed checkpoint",
            {"events": [*GOOD.events[:6], ("rendezvous.step.StepRecorded", {"step": "24", "generation": "2"})]},
        ),
        (
            "training resumed from a committed checkpoint",
            {"events": [*GOOD.events[:3], *GOOD.events[4:7], GOOD.events[3]]},
        ),
        ("checkpoints were committed before and after", {"events": GOOD.events[:7]}),
        ("checkpoints were committed before and after", {"events": [*GOOD.events[:3], *GOOD.events[4:]]}),
        (
            "checkpoints were committed before and after",
            {"events": [*GOOD.events[:7], ("checkpoint.Committed", {"step": "30", "generation": "1"})]},
        ),
        ("text was generated", {"result": {**GOOD.result, "sample": " \n"}}),
        ("the log folds to the stored state", {"differences": 1}),
        ("the log folds to the stored state", {"verified_events": 0}),
    ],
)
def test_each_missing_fact_fails_the_demo(check: str, change: dict[str, Any]) -> None:
    report = build(replace(GOOD, **change))
    assert not report.checks[check]
    assert not report.ok
