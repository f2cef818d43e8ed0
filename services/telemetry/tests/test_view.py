from __future__ import annotations

from functools import reduce

import msgspec

from distroml.telemetry.dashboard.present_compression import change_rows, schemes_now
from distroml.telemetry.domain import facts as f
from distroml.telemetry.domain.schemes import MAX_SCHEMES
from distroml.telemetry.domain.summary import (
    GenerationSamples,
    StepPoint,
    current_advice,
    eta_ms,
    marks,
    rates,
    recoveries,
    stalled,
)
from distroml.telemetry.domain.view import MAX_CHECKPOINTS, MAX_PLANS, JobView, evolve
from distroml.telemetry.domain.wire import scheme_kind, wire_values, wire_way

SUBMITTED = f.Submitted(
    at_ms=1, name="gpt", project="default", command=("a.py",), min_workers=2, max_workers=2, priority=0
)
W0, W1 = "j.1.n.0", "j.1.n.1"


def formed(number: int, at_ms: int) -> f.GenerationFormed:
    members = tuple(f.MemberRow(worker=w, node="n", rank=i, local_rank=i) for i, w in enumerate((W0, W1)))
    return f.GenerationFormed(at_ms=at_ms, number=number, world_size=2, members=members, mesh=(("dp_replicate", 2),))


def exited(number: int, at_ms: int, *, expected: bool = False) -> f.WorkerExited:
    return f.WorkerExited(
        at_ms=at_ms, worker=W1, generation=number, rank=1, code=0, signal=0 if expected else 9,
        category="" if expected else "signal", message="", last_step=40, expected=expected,
    )  # fmt: skip


def broken(number: int, at_ms: int, *, category: str = "signal", worker: str = W1) -> f.GenerationBroken:
    return f.GenerationBroken(
        at_ms=at_ms, number=number, cause="WorkerExited", worker=worker, rank=1, category=category, message=""
    )


def view_of(*facts: f.JobFact) -> JobView:
    return reduce(evolve, facts, JobView(job="j"))


def span(first: int, at: int) -> GenerationSamples:
    return GenerationSamples(first_step=first, first_at_ms=at, last_step=first + 10, last_at_ms=at + 1000)


def test_a_job_from_submission_to_its_end() -> None:
    view = view_of(
        SUBMITTED,
        f.StateChanged(at_ms=2, state="admitted", attempt=1, workers=2, nodes=("n",)),
        formed(1, 3),
        f.StateChanged(at_ms=4, state="running", attempt=1, generation=1),
        f.StateChanged(at_ms=9, state="succeeded"),
    )
    assert (view.state, view.started_ms, view.finished_ms, view.attempt, view.world_size) == ("succeeded", 4, 9, 1, 2)
    assert view.ended
    assert {w.state for w in view.workers} == {"done"}


def test_a_broken_generation_counts_as_a_restart_and_survivors_wait() -> None:
    view = view_of(SUBMITTED, formed(1, 3), exited(1, 10), broken(1, 12))
    assert view.restarts == (("signal", 1),)
    assert {w.worker: w.state for w in view.workers} == {W0: "waiting", W1: "failed"}
    assert {w.state for w in evolve(view, formed(2, 20)).workers} == {"running"}


def test_a_worker_that_was_seen_to_fail_stays_failed_where_its_member_is_lost_too() -> None:
    gone = f.MemberLost(at_ms=11, generation=1, node="n", cause="worker exited", workers=(W0, W1))
    view = view_of(SUBMITTED, formed(1, 3), exited(1, 10), gone)
    assert {w.worker: w.state for w in view.workers} == {W0: "lost", W1: "failed"}


def test_a_recovery_lasts_from_the_loss_to_the_first_step_of_the_next_generation() -> None:
    view = view_of(SUBMITTED, formed(1, 3), exited(1, 10), broken(1, 12), formed(2, 900))
    (row,) = recoveries(view, {1: span(1, 5), 2: span(31, 2010)})
    assert (row.lost_at_ms, row.formed_at_ms, row.first_step_at_ms) == (10, 900, 2010)
    assert (row.generation, row.resumed_from_step, row.category, row.worker) == (2, 30, "signal", W1)


def test_a_generation_that_broke_before_its_first_step_does_not_end_the_recovery() -> None:
    view = view_of(SUBMITTED, formed(1, 3), exited(1, 10), broken(1, 12), formed(2, 20), broken(2, 30), formed(3, 50))
    (row,) = recoveries(view, {1: span(1, 5), 3: span(31, 99)})
    assert (row.generation, row.lost_at_ms, row.first_step_at_ms) == (3, 10, 99)


def test_a_planned_change_of_size_is_no_recovery_and_no_failure_mark() -> None:
    view = view_of(
        SUBMITTED, formed(1, 3), exited(1, 9, expected=True), broken(1, 12, category="", worker=""), formed(2, 20)
    )
    assert recoveries(view, {1: span(1, 5), 2: span(31, 99)}) == ()
    assert [m.kind for m in marks(view, {1: span(1, 5), 2: span(31, 99)})] == ["generation"]


def test_marks_stand_at_their_steps() -> None:
    saved = f.SaveSeen(at_ms=8, save_id="s", step=30, generation=1, state="committed", bytes_total=1)
    view = view_of(SUBMITTED, formed(1, 3), saved, exited(1, 10), broken(1, 12), formed(2, 20))
    found = [(m.kind, m.step) for m in marks(view, {2: span(31, 2010)})]
    assert found == [("checkpoint", 30), ("failure", 40), ("generation", 31)]


def test_a_save_is_one_row_from_begun_to_committed_and_marked_later() -> None:
    begun = f.SaveSeen(at_ms=5, save_id="s", step=30, generation=1, state="saving")
    done = f.SaveSeen(at_ms=8, save_id="s", step=30, generation=1, state="committed", manifest_hash="ab")
    view = view_of(SUBMITTED, begun, done, f.CheckpointMarked(at_ms=9, step=30, manifest_hash="ab", state="damaged"))
    (row,) = view.checkpoints
    assert row.state == "damaged"
    assert (view.checkpoints_committed, view.last_checkpoint_step) == (1, 30)


def test_lists_of_a_view_are_bounded() -> None:
    saves = [
        f.SaveSeen(at_ms=i, save_id=f"s{i}", step=i, generation=1, state="committed")
        for i in range(MAX_CHECKPOINTS + 50)
    ]
    view = view_of(SUBMITTED, *saves, *(formed(i, i) for i in range(1, 300)))
    assert len(view.checkpoints) == MAX_CHECKPOINTS
    assert len(view.generations) == 200
    assert view.checkpoints_committed == MAX_CHECKPOINTS + 50


def test_rates_count_the_pauses_between_steps() -> None:
    points = [StepPoint(step=i, at_ms=i * 1000, step_s=0.5, tokens=100, samples=4) for i in range(1, 11)]
    now = rates(points)
    assert (now.steps_per_s, now.tokens_per_s, now.samples_per_s, now.step_s) == (1.0, 100.0, 4.0, 0.5)


def test_rates_of_one_step_come_from_its_own_seconds() -> None:
    assert rates([StepPoint(step=1, at_ms=5, step_s=0.5, tokens=100)]).tokens_per_s == 200
    assert rates([]).steps_per_s == 0


def test_no_estimate_without_a_total_or_a_rate() -> None:
    assert eta_ms(10, 100, 1000, 2.0) == 1000 + 45_000
    assert eta_ms(10, 0, 1000, 2.0) == 0
    assert eta_ms(10, 100, 1000, 0.0) == 0
    assert eta_ms(10, 10**18, 1000, 10.0) == eta_ms(10, 10**18, 1000, 1e-300) == 0


def test_a_job_without_a_step_for_long_is_stalled() -> None:
    assert not stalled(15_000, 10_000, 0.2)
    assert stalled(25_000, 10_000, 0.2)
    assert not stalled(25_000, 10_000, 10.0)


def seen(generation: int, step_s: float = 0.2) -> f.PlanSeen:
    return f.PlanSeen(at_ms=generation, generation=generation, plan="tp=2", step_seconds=step_s, peak_bytes=100)


def measured(generation: int, steps: int, step_s: float) -> f.PlanMeasured:
    return f.PlanMeasured(
        at_ms=9, generation=generation, steps=steps, step_seconds=step_s, peak_bytes=90, verdict="Slower", message="m"
    )


def test_a_plan_keeps_its_newest_measurement_whichever_came_first() -> None:
    for facts in ((seen(1), measured(1, 10, 0.3), measured(1, 20, 0.4)), (measured(1, 20, 0.4), seen(1))):
        (plan,) = view_of(SUBMITTED, *facts).plans
        assert (plan.plan, plan.predicted_s, plan.predicted_bytes) == ("tp=2", 0.2, 100)
        assert (plan.steps, plan.measured_s, plan.measured_bytes, plan.verdict) == (20, 0.4, 90, "Slower")


def test_how_gradients_are_summed_stands_with_the_generations_plan() -> None:
    sums = f.SumsChosen(at_ms=9, generation=1, sums="hierarchical from 512 KiB")
    for facts in ((seen(1), sums, seen(2)), (sums, seen(1), seen(2))):
        first, second = view_of(SUBMITTED, *facts).plans
        assert (first.plan, first.sums, second.sums) == ("tp=2", "hierarchical from 512 KiB", "")


def test_plans_are_kept_by_generation_and_bounded() -> None:
    view = view_of(SUBMITTED, *(seen(number) for number in range(MAX_PLANS + 5, 0, -1)))
    assert [plan.generation for plan in view.plans] == list(range(6, MAX_PLANS + 6))


def changed(generation: int, step: int, bucket: int, scheme: str) -> f.SchemeChanged:
    return f.SchemeChanged(
        at_ms=step,
        generation=generation,
        bucket=bucket,
        buckets=(bucket,),
        from_scheme="none",
        to_scheme=scheme,
        reason="LinkSlower",
        why="slow",
        from_step=step,
    )


def test_changes_of_schemes_are_kept_bounded_and_marked_once_a_step() -> None:
    view = view_of(SUBMITTED, *(changed(1, step, bucket, "int8") for step in (5, 9) for bucket in range(3)))
    assert [m.text for m in marks(view, {}) if m.kind == "scheme"] == [
        "buckets 0–2 from step 5: none → int8",
        "buckets 0–2 from step 9: none → int8",
    ]
    view = view_of(SUBMITTED, *(changed(1, step, 0, "int4") for step in range(MAX_SCHEMES + 5)))
    assert [row.from_step for row in view.schemes] == list(range(5, MAX_SCHEMES + 5))


def test_the_schemes_that_hold_are_the_newest_generations() -> None:
    view = view_of(
        SUBMITTED,
        changed(1, 5, 7, "sign"),
        changed(2, 1, 0, "int8"),
        changed(2, 1, 1, "int8"),
        changed(2, 9, 0, "none"),
    )
    assert schemes_now(view) == "none (bucket 0), int8 (bucket 1)"
    assert schemes_now(view_of(SUBMITTED)) == ""
    assert schemes_now(view_of(msgspec.structs.replace(SUBMITTED, compress="int8"))) == "asked for: int8"
    newest, *_ = change_rows(view)
    assert (newest["step"], newest["buckets"], newest["change"]) == ("9", "bucket 0", "none → none")
    assert newest["why"] == {"text": "slow", "sub": "LinkSlower"}
    assert [row["buckets"] for row in change_rows(view)] == ["bucket 0", "buckets 0–1", "bucket 7"]


def test_advice_of_an_older_generation_is_not_shown() -> None:
    advised = f.CompressionAdvised(
        at_ms=1, generation=1, step=23, step_s=0.5, exposed_s=0.3, predicted_s=0.2, faster=2.4, schemes="int8"
    )
    view = view_of(SUBMITTED, advised)
    assert current_advice(view) == view.advice
    formed = f.GenerationFormed(at_ms=2, number=2, world_size=1, members=(), mesh=())
    assert current_advice(view_of(SUBMITTED, advised, formed)) is None


def test_ways_of_the_wire_have_few_names() -> None:
    assert wire_way("dp_replicate/node/powersgd:4+int8") == ("dp_replicate", "node", "powersgd:4+int8")
    assert wire_way("made up") == ("other", "", "")
    assert [scheme_kind(s) for s in ("powersgd:4+int8", "topk:0.01", "int8", "zip", "")] == [
        "powersgd", "topk", "int8", "other", "other",
    ]  # fmt: skip
    values = wire_values(
        {"dp_replicate/node/powersgd:4": 10, "dp_replicate/cluster/powersgd:8": 5, "dp_shard/node/int8": 1}
    )
    assert values == {"wire_bytes": 16.0, "wire_bytes/dp_replicate/powersgd": 15.0, "wire_bytes/dp_shard/int8": 1.0}
    assert wire_values({}) == {}
