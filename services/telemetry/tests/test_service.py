from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest
from world import World, a_running_job
from worldlog import DEPLOYMENT, TRACE_ID, lines, now_ms, steps

from distroml.api.common.v1.common_pb2 import FailureCategory
from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.eventstore.memory import open_event_store
from distroml.rpc import RemoteError
from distroml.statestore.memory import MemoryDatabase
from distroml.telemetry.history.port import Filter
from distroml.telemetry.past import Past
from distroml.telemetry.server import ACK_WINDOW, TelemetryServicer
from distroml.telemetry.settings import Limits


async def test_malformed_records_are_dropped_and_counted_and_the_rest_is_kept(world: World) -> None:
    good = steps("job-a", 1, 2, world=1)
    bad = [t.StepSample(job="../etc", step=1), t.StepSample(job="job-a", rank=-1), t.StepSample(job="job-a", step=-5)]
    wrong_lines = [t.LogRecord(job="job-a", stream="stdin"), t.LogRecord(job="", stream="stdout")]
    blocks = [
        t.LogBlock(job="", stream="stdout", data=b"of\nnobody\n"),
        t.LogBlock(job="job-a", stream="stdout", data=b"\n" * 30_000),
        t.LogBlock(job="job-a", stream="stderr", trace_id="t", offset=7, data=b"ERROR: \xff\r\nno end"),
    ]
    response = await world.push(steps=good + bad, logs=wrong_lines + lines("job-a", ["x" * 5000]), log_blocks=blocks)
    assert (response.dropped_samples, response.dropped_lines) == (3, 2 + 2 + 30_000)
    answer = [r async for m in world.stub.QueryLogs(t.QueryLogsRequest(job="job-a")) for r in m.records]
    assert [(r.text, r.level, r.offset, r.trace_id) for r in answer[1:]] == [
        ("ERROR: \ufffd", "error", 7, "t"),
        ("no end", "", 17, "t"),
    ]
    assert len(answer[0].text.encode()) <= 1000
    assert answer[0].text.endswith("[cut]")
    assert world.registry.get_sample_value(
        "distroml_telemetry_dropped_total", {"kind": "sample", "where": "form"}
    ) == 3  # fmt: skip


async def test_a_batch_that_does_not_fit_is_answered_with_what_was_dropped(tmp_path: Path) -> None:
    async with World(tmp_path, Limits(pending_records=10)).running() as world:
        response = await world.push(steps=steps("job-a", 1, 10, world=2), logs=lines("job-a", ["x"]))
        assert (response.dropped_samples, response.dropped_lines) == (20, 1)
        await world.push(steps=steps("job-a", 11, 11, world=1))
        summary = await world.stub.GetJobSummary(t.GetJobSummaryRequest(job="job-a"))
        assert (summary.step, summary.dropped_samples, summary.dropped_lines) == (11, 20, 1)


async def test_what_an_agent_dropped_is_counted_once(world: World) -> None:
    for total in (5, 5, 9, 2):
        await world.push(dropped_lines=total, steps=[])
    value = world.registry.get_sample_value("distroml_telemetry_dropped_total", {"kind": "line", "where": "agent"})
    assert value == 5 + 4 + 2


async def test_wrong_requests_are_refused_by_field(world: World) -> None:
    with pytest.raises(RemoteError) as refused:
        await world.stub.QuerySeries(t.QuerySeriesRequest(job="No Such", names=[], max_points=-1))
    assert {field for field, _ in refused.value.violations} == {"job", "names", "max_points"}
    with pytest.raises(RemoteError) as unknown:
        await world.stub.GetJobSummary(t.GetJobSummaryRequest(job="job-nobody"))
    assert unknown.value.reason == "JobNotFound"


async def test_the_summary_joins_events_and_samples(world: World) -> None:
    await a_running_job(world)
    summary = await world.stub.GetJobSummary(t.GetJobSummaryRequest(job="job-live"))
    assert (summary.step, summary.total_steps, summary.generation, summary.world_size) == (380, 1000, 2, 2)
    assert (summary.checkpoints, summary.last_checkpoint_step) == (3, 300)
    assert summary.tokens_per_s == pytest.approx(16 * 256 / 0.25, rel=0.05)
    assert summary.samples == 380 * 16
    assert summary.trace_url == f"http://jaeger.test:16686/trace/{TRACE_ID}"
    assert summary.grafana_url == "http://grafana.test:3000/d/distroml-job?var-job_id=job-live"
    assert summary.eta_ms == pytest.approx(now_ms() + 620 * 250, abs=10_000)
    (recovery,) = summary.recoveries
    assert recovery.category == FailureCategory.FAILURE_CATEGORY_SIGNAL
    assert recovery.resumed_from_step == 200
    assert recovery.lost_at_ms < recovery.formed_at_ms < recovery.first_step_at_ms


async def test_the_summary_tells_each_plan_and_of_the_newest_why(world: World) -> None:
    await a_running_job(world)
    summary = await world.stub.GetJobSummary(t.GetJobSummaryRequest(job="job-live"))
    first, second = summary.plans
    assert (first.generation, first.verdict, first.steps, first.step_seconds) == (1, "AsPredicted", 20, 0.25)
    assert not first.reasons
    assert not first.others
    assert (second.generation, second.verdict, second.steps) == (2, "", 0)
    assert second.plan == "pp=2,microbatch=4,accum=8,schedule=1f1b,stages=3/3"
    assert second.predicted_step_seconds == 0.24
    assert second.predicted_peak_bytes_per_rank == 500_000_000
    assert list(second.reasons) == ["two stages fit, one does not"]
    assert second.binding == "the bubble: 18%"
    assert second.alternatives_hash == "ab" * 32
    (other,) = second.others
    assert (other.plan, other.step_seconds) == ("dp_replicate=2,microbatch=4", 0.48)
    assert other.reason.startswith("needs 1.4 GB")


async def test_recoveries_and_checkpoints_are_metrics(world: World) -> None:
    await a_running_job(world)
    value = world.registry.get_sample_value

    async def timed() -> bool:
        return value("distroml_train_recovery_seconds_count", {"category": "signal"}) == 1

    await world.until(timed, "the recovery in the histogram")
    assert value("distroml_train_failures_total", {"category": "signal"}) == 1
    assert value("distroml_train_failures_total", {"category": "hang"}) == 0
    assert value("distroml_train_checkpoints_total", {"outcome": "committed"}) == 3
    job = {"job_id": "job-live"}
    assert value("distroml_train_job_failures_total", job) == 1
    assert value("distroml_train_last_checkpoint_step", job) == 300
    # Steps 201 to 240 ran twice: both times cost tokens, and one time was of use.
    assert value("distroml_train_tokens_total", job) == (380 + 40) * 16 * 256
    spent = value("distroml_train_step_seconds_sum", job) or 0
    assert value("distroml_train_useful_slot_seconds_total", job) == pytest.approx(spent * 2 * 380 / 420, rel=0.05)


async def test_used_operations_are_told_by_the_plan_or_by_the_script(world: World) -> None:
    async def caught_up() -> bool:
        return world.projector.caught_up

    # What a new read model finds in the log is not news.
    await world.until(caught_up, "an empty log is read")
    await world.log.submit("job-a", name="gpt")
    await world.log.start("job-a")
    await world.log.plan("job-a")
    await world.folded()

    def mfu() -> float | None:
        return world.registry.get_sample_value("distroml_train_mfu_ratio", {"job_id": "job-a"})

    (sample,) = steps("job-a", 1, 1, world=1)
    await world.push(steps=[sample])
    # Predicted for steps of 0.24 s: longer ones use less.
    assert mfu() == pytest.approx(0.31 * 0.24 / sample.step_s)
    sample.extra["mfu"] = 0.4
    await world.push(steps=[sample])
    assert mfu() == 0.4


async def test_job_labels_are_bounded(tmp_path: Path) -> None:
    async with World(tmp_path, Limits(labelled_jobs=3)).running() as world:
        for i in range(6):
            await world.push(steps=steps(f"job-{i}", 1, 1))
        found = [
            sample.labels["job_id"]
            for family in world.registry.collect()
            if family.name == "distroml_train_step"
            for sample in family.samples
        ]
        # Those that train keep theirs: were the newest let in, each would reset another one's counts.
        assert found == ["job-0", "job-1", "job-2"]
        assert world.registry.get_sample_value("distroml_telemetry_unlabelled_total") == 3


async def test_the_projection_follows_the_log_and_skips_what_it_does_not_know(world: World) -> None:
    await world.log.submit("job-a", name="digits")
    await world.log.start("job-a")
    await world.log.job("job-a", "TurnedIntoAPumpkin", s.JobSucceeded(at_ms=1))
    await world.log.job("job-a", "Succeeded", s.JobSucceeded(at_ms=now_ms()))
    await world.folded()
    view = await world.model.history.view("job-a")
    assert view is not None
    assert (view.name, view.state, view.world_size) == ("digits", "succeeded", 2)
    assert world.projector.skipped == 1
    assert world.registry.get_sample_value("distroml_telemetry_skipped_events_total") == 1
    events = await world.model.history.events("job-a")
    assert events[0].type == "scheduler.job.Succeeded"


async def test_a_lost_model_is_filled_again_from_the_log(tmp_path: Path) -> None:
    store = open_event_store(MemoryDatabase(DEPLOYMENT))
    first = World(tmp_path, Limits(), store)
    async with first.running():
        await first.log.submit("job-a")
        await first.log.start("job-a")
        await first.folded()
    (tmp_path / "history.sqlite").write_bytes(b"garbage" * 1000)
    second = World(tmp_path, Limits(), store)
    async with second.running():
        await second.folded()
        view = await second.model.history.view("job-a")
        assert view is not None
        assert view.state == "running"
        assert (await second.model.history.jobs(Filter())).total == 1
    await store.close()


async def test_a_restart_goes_on_where_the_model_stands(tmp_path: Path) -> None:
    store = open_event_store(MemoryDatabase(DEPLOYMENT))
    first = World(tmp_path, Limits(), store)
    async with first.running():
        await first.log.submit("job-a")
        await first.log.start("job-a")
        await first.log.lose("job-a", 1, step=5)
        await first.folded()
    second = World(tmp_path, Limits(), store)
    second.log = first.log
    async with second.running():
        await second.log.generation("job-a", 2)
        await second.folded()
        view = await second.model.history.view("job-a")
        assert view is not None
        assert view.restarts == (("signal", 1),)
        assert second.projector.folded < 6
    await store.close()


async def test_another_log_is_folded_from_its_beginning(tmp_path: Path) -> None:
    first = World(tmp_path, Limits())
    async with first.running():
        await first.log.submit("job-old")
        await first.folded()
    second = World(tmp_path, Limits(), open_event_store(MemoryDatabase("dep-other")))
    async with second.running():
        await second.log.submit("job-new")
        await second.folded()
        page = await second.model.history.jobs(Filter())
        assert [view.job for view in page.views] == ["job-new"]


async def test_an_agent_that_goes_in_the_middle_leaves_nothing_behind(world: World) -> None:
    waits = asyncio.Event()

    async def requests() -> AsyncGenerator[t.PushRequest]:
        for sequence in range(10 * ACK_WINDOW):
            if sequence == ACK_WINDOW + 1:
                # The first one is on its way into the file, and there is no room for this one behind the others.
                waits.set()
            yield t.PushRequest(node="node-a", sequence=sequence, steps=steps("job-a", sequence + 1, sequence + 1))

    servicer = TelemetryServicer(world.model, world.metrics, world.limits, Past(world.model, world.store))
    answers = servicer.Push(requests(), cast("Any", None))
    answering = asyncio.ensure_future(anext(answers))
    await waits.wait()
    (taking,) = [task for task in asyncio.all_tasks() if task.get_name() == "telemetry-push"]
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    await answers.aclose()
    await asyncio.wait({taking}, timeout=5)
    assert taking.done()
