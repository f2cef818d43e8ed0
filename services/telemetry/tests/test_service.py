from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from world import World, a_running_job
from worldlog import DEPLOYMENT, lines, now_ms, steps

from distroml.api.common.v1.common_pb2 import FailureCategory
from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.eventstore.memory import open_event_store
from distroml.rpc import RemoteError
from distroml.statestore.memory import MemoryDatabase
from distroml.telemetry.adapters.jobs import read_events, read_jobs, read_view
from distroml.telemetry.settings import Limits


async def test_a_push_is_acknowledged_when_it_can_be_read(world: World) -> None:
    response = await world.push(steps=steps("job-a", 1, 10))
    assert response.sequence == 1
    answer = await world.stub.QuerySeries(t.QuerySeriesRequest(job="job-a", names=["loss"]))
    (series,) = answer.series
    assert [p.step for p in series.points] == list(range(1, 11))


async def test_many_batches_on_one_stream_are_acknowledged_in_order(world: World) -> None:
    call = world.stub.Push()

    async def write() -> None:
        for i in range(1, 101):
            await call.write(t.PushRequest(node="n", sequence=i, steps=steps("job-a", i, i)))
        await call.done_writing()

    writing = asyncio.create_task(write())
    assert [r.sequence async for r in call] == list(range(1, 101))
    await writing


async def test_malformed_records_are_dropped_and_counted_and_the_rest_is_kept(world: World) -> None:
    good = steps("job-a", 1, 2, world=1)
    bad = [t.StepSample(job="../etc", step=1), t.StepSample(job="job-a", rank=-1), t.StepSample(job="job-a", step=-5)]
    wrong_lines = [t.LogRecord(job="job-a", stream="stdin"), t.LogRecord(job="", stream="stdout")]
    response = await world.push(steps=good + bad, logs=wrong_lines + lines("job-a", ["x" * 5000]))
    assert (response.dropped_samples, response.dropped_lines) == (3, 2)
    answer = [r async for m in world.stub.QueryLogs(t.QueryLogsRequest(job="job-a")) for r in m.records]
    assert len(answer) == 1
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


async def test_series_are_thinned_to_what_is_asked_for(world: World) -> None:
    await world.push(steps=steps("job-a", 1, 2000, world=1))
    request = t.QuerySeriesRequest(job="job-a", names=["loss", "tokens_per_s", "nothing"], max_points=50, from_step=500)
    answer = await world.stub.QuerySeries(request)
    assert [x.name for x in answer.series] == ["loss", "tokens_per_s"]
    assert all(len(x.points) <= 50 for x in answer.series)
    assert answer.series[0].points[-1].step == 2000
    assert answer.series[0].points[0].min <= answer.series[0].points[0].mean <= answer.series[0].points[0].max


async def test_wrong_requests_are_refused_by_field(world: World) -> None:
    with pytest.raises(RemoteError) as refused:
        await world.stub.QuerySeries(t.QuerySeriesRequest(job="No Such", names=[], max_points=-1))
    assert {field for field, _ in refused.value.violations} == {"job", "names", "max_points"}
    with pytest.raises(RemoteError) as unknown:
        await world.stub.GetJobSummary(t.GetJobSummaryRequest(job="job-nobody"))
    assert unknown.value.reason == "JobNotFound"


async def test_logs_follow_without_loss_or_repetition(world: World) -> None:
    await world.push(logs=lines("job-a", [f"old {i}" for i in range(20)]))
    call = world.stub.QueryLogs(t.QueryLogsRequest(job="job-a", follow=True, tail=5))
    seen: list[str] = []
    enough = asyncio.Event()

    async def read() -> None:
        async for message in call:
            seen.extend(r.text for r in message.records)
            if len(seen) >= 35:
                enough.set()

    reading = asyncio.create_task(read())
    for start in range(0, 30, 10):
        await world.push(
            logs=lines("job-a", [f"new {i}" for i in range(start, start + 10)], offset=10_000 + start * 100)
        )
    await asyncio.wait_for(enough.wait(), 10)
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert seen == [f"old {i}" for i in range(15, 20)] + [f"new {i}" for i in range(30)]


async def test_watchers_get_samples_of_their_job_as_they_come(world: World) -> None:
    call = world.stub.WatchSamples(t.WatchSamplesRequest(job="job-a"))
    got: list[int] = []

    async def read() -> None:
        async for message in call:
            got.extend(x.step for x in message.steps)

    reading = asyncio.create_task(read())

    async def some() -> bool:
        step = len(got) + 1
        await world.push(steps=steps("job-a", step, step, world=1) + steps("job-b", step, step, world=1))
        return len(got) >= 3

    await world.until(some, "three steps of job-a")
    call.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert got == sorted(got)


async def test_the_summary_joins_events_and_samples(world: World) -> None:
    await a_running_job(world)
    summary = await world.stub.GetJobSummary(t.GetJobSummaryRequest(job="job-live"))
    assert (summary.step, summary.total_steps, summary.generation, summary.world_size) == (380, 1000, 2, 2)
    assert (summary.checkpoints, summary.last_checkpoint_step) == (3, 300)
    assert summary.tokens_per_s == pytest.approx(16 * 256 / 0.25, rel=0.05)
    assert summary.samples == 380 * 16
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

    async def timed() -> bool:
        return world.registry.get_sample_value("distroml_train_recovery_seconds_count") == 1

    await world.until(timed, "the recovery in the histogram")
    value = world.registry.get_sample_value
    assert value("distroml_train_checkpoints_total", {"outcome": "committed"}) == 3
    # Steps 201 to 240 ran twice, and both times cost tokens.
    assert value("distroml_train_tokens_total", {"job": "job-live"}) == (380 + 40) * 16 * 256


async def test_job_labels_are_bounded(tmp_path: Path) -> None:
    async with World(tmp_path, Limits(labelled_jobs=3)).running() as world:
        for i in range(6):
            await world.push(steps=steps(f"job-{i}", 1, 1))
        found = [
            sample.labels["job"]
            for family in world.registry.collect()
            if family.name == "distroml_train_step"
            for sample in family.samples
        ]
        assert found == ["job-3", "job-4", "job-5"]


async def test_the_projection_follows_the_log_and_skips_what_it_does_not_know(world: World) -> None:
    await world.log.submit("job-a", name="digits")
    await world.log.start("job-a")
    await world.log.job("job-a", "TurnedIntoAPumpkin", s.JobSucceeded(at_ms=1))
    await world.log.job("job-a", "Succeeded", s.JobSucceeded(at_ms=now_ms()))
    await world.folded()
    view = await world.model.read(read_view, "job-a")
    assert view is not None
    assert (view.name, view.state, view.world_size) == ("digits", "succeeded", 2)
    assert world.projector.skipped == 1
    assert world.registry.get_sample_value("distroml_telemetry_skipped_events_total") == 1
    events = await world.model.read(read_events, "job-a")
    assert events[0].type == "scheduler.job.Succeeded"


async def test_a_lost_model_is_filled_again_from_the_log(tmp_path: Path) -> None:
    store = open_event_store(MemoryDatabase(DEPLOYMENT))
    first = World(tmp_path, Limits(), store)
    async with first.running():
        await first.log.submit("job-a")
        await first.log.start("job-a")
        await first.folded()
    (tmp_path / "telemetry.sqlite").write_bytes(b"garbage" * 1000)
    second = World(tmp_path, Limits(), store)
    async with second.running():
        await second.folded()
        view = await second.model.read(read_view, "job-a")
        assert view is not None
        assert view.state == "running"
        assert (await second.model.read(read_jobs)).total == 1
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
        view = await second.model.read(read_view, "job-a")
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
        page = await second.model.read(read_jobs)
        assert [view.job for view, _ in page.jobs] == ["job-new"]
