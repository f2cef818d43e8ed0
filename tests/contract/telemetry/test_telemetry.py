"""What agents push and what users read: acknowledged when it can be read, counted where it was dropped."""

from __future__ import annotations

import asyncio

import pytest

from distroml.api.checkpoint.v1 import checkpoint_pb2 as ckpt
from distroml.api.common.v1.common_pb2 import FailureCategory
from distroml.api.rendezvous.v1 import rendezvous_pb2 as rdzv
from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.api.scheduler.v1 import jobs_pb2 as jobs
from distroml.api.telemetry.v1 import telemetry_pb2 as pb
from distroml.events import fresh_id
from distroml.rpc import RemoteError
from tests.contract.calls import PATIENCE_S, drained, fields_of, refused, until
from tests.contract.telemetry.conftest import Telemetry, now_ms


async def test_what_is_acknowledged_can_be_read(telemetry: Telemetry) -> None:
    await telemetry.push(steps=telemetry.steps(1, 10))
    query = pb.QuerySeriesRequest(job=telemetry.job, names=["loss", "step_s", "nothing"])
    series = (await telemetry.stub.QuerySeries(query)).series
    assert [one.name for one in series] == ["loss", "step_s"]
    assert [(point.step, point.mean) for point in series[0].points] == [(step, 1 / step) for step in range(1, 11)]


async def test_batches_of_a_stream_are_acknowledged_in_their_order(telemetry: Telemetry) -> None:
    call = telemetry.stub.Push()

    async def write() -> None:
        for sequence in range(1, 101):
            steps = telemetry.steps(sequence, sequence)
            await call.write(pb.PushRequest(node=telemetry.node, sequence=sequence, steps=steps))
        await call.done_writing()

    writing = asyncio.create_task(write())
    async with asyncio.timeout(PATIENCE_S):
        assert [response.sequence async for response in call] == list(range(1, 101))
        await writing


async def test_what_is_malformed_is_dropped_and_counted_and_the_rest_is_kept(telemetry: Telemetry) -> None:
    bad = [pb.StepSample(job="../etc", step=1), pb.StepSample(job=telemetry.job, rank=-1)]
    wrong = [pb.LogRecord(job=telemetry.job, stream="stdin"), pb.LogRecord(job="", stream="stdout")]
    response = await telemetry.push(
        steps=[*telemetry.steps(1, 2), *bad], logs=[*wrong, *telemetry.lines(["x" * 100_000])]
    )
    assert (response.dropped_samples, response.dropped_lines) == (2, 2)
    [answer] = await drained(telemetry.stub.QueryLogs(pb.QueryLogsRequest(job=telemetry.job)))
    [line] = answer.records
    assert line.text.endswith("[cut]")
    assert len(line.text) < 100_000
    assert (await telemetry.stub.GetJobSummary(pb.GetJobSummaryRequest(job=telemetry.job))).step == 2


async def test_a_line_that_comes_twice_is_kept_once(telemetry: Telemetry) -> None:
    """After a broken stream an agent sends again what was not acknowledged."""
    for _ in range(2):
        await telemetry.push(logs=telemetry.lines(["one", "two"]))
    await telemetry.push(logs=telemetry.lines(["two", "three"], offset=100))
    [one] = telemetry.lines([""], offset=300)
    same = {name: getattr(one, name) for name in ("job", "rank", "worker", "generation", "stream", "at_ms")}
    await telemetry.push(
        log_blocks=[
            pb.LogBlock(**same, offset=300, data=b"four\nINFO five\n"),
            pb.LogBlock(**same, offset=305, data=b"INFO five\nsix\n"),
        ]
    )
    answers = await drained(telemetry.stub.QueryLogs(pb.QueryLogsRequest(job=telemetry.job)))
    found = [(line.text, line.level, line.offset) for answer in answers for line in answer.records]
    assert [text for text, _, _ in found] == ["one", "two", "three", "four", "INFO five", "six"]
    assert found[-2:] == [("INFO five", "info", 305), ("six", "", 315)]


async def test_series_are_thinned_to_what_is_asked_for(telemetry: Telemetry) -> None:
    await telemetry.push(steps=[*telemetry.steps(1, 500), *telemetry.steps(1, 500, rank=1)])
    query = pb.QuerySeriesRequest(job=telemetry.job, names=["loss"], max_points=50, from_step=100, ranks=[1])
    [series] = (await telemetry.stub.QuerySeries(query)).series
    assert (series.name, series.rank) == ("loss", 1)
    assert 0 < len(series.points) <= 50
    assert series.points[0].step >= 100
    assert series.points[-1].step == 500
    assert all(point.min <= point.mean <= point.max for point in series.points)
    [lowest] = (await telemetry.stub.QuerySeries(pb.QuerySeriesRequest(job=telemetry.job, names=["loss"]))).series
    assert lowest.rank == 0


async def test_lines_are_chosen_by_rank_text_and_from_the_end(telemetry: Telemetry) -> None:
    await telemetry.push(
        logs=[
            *telemetry.lines([f"line {index}" for index in range(9)]),
            *telemetry.lines(["Warning: odd"], rank=1),
        ]
    )

    async def texts(**request: object) -> list[str]:
        answers = await drained(telemetry.stub.QueryLogs(pb.QueryLogsRequest(job=telemetry.job, **request)))
        return [line.text for answer in answers for line in answer.records]

    assert len(await texts()) == 10
    assert await texts(ranks=[1]) == ["Warning: odd"]
    assert await texts(ranks=[0], tail=2) == ["line 7", "line 8"]
    assert await texts(contains="WARNING") == ["Warning: odd"]
    assert await texts(contains="nowhere") == []


async def test_following_lines_loses_and_repeats_nothing_and_ends_with_the_deadline(telemetry: Telemetry) -> None:
    await telemetry.push(logs=telemetry.lines([f"old {index}" for index in range(9)]))
    call = telemetry.stub.QueryLogs(pb.QueryLogsRequest(job=telemetry.job, follow=True, tail=2))
    seen: list[str] = []
    wanted = ["old 7", "old 8", *(f"new {index}" for index in range(20))]

    async def read() -> None:
        async for message in call:
            seen.extend(line.text for line in message.records)
            if len(seen) >= len(wanted):
                return

    reading = asyncio.create_task(read())
    for first in (0, 10):
        texts = [f"new {index}" for index in range(first, first + 10)]
        await telemetry.push(logs=telemetry.lines(texts, offset=10_000 + 100 * first))
    await asyncio.wait_for(reading, PATIENCE_S)
    call.cancel()
    assert seen == wanted
    with refused("DEADLINE_EXCEEDED", "DeadlineExceeded"):
        await drained(telemetry.stub.QueryLogs(pb.QueryLogsRequest(job=telemetry.job, follow=True), timeout=0.5))


async def test_watchers_get_the_samples_of_their_job_as_they_come(telemetry: Telemetry) -> None:
    other = fresh_id("job")
    call = telemetry.stub.WatchSamples(pb.WatchSamplesRequest(job=telemetry.job))
    got: list[pb.StepSample] = []

    async def read() -> None:
        async for message in call:
            got.extend(message.steps)

    reading = asyncio.create_task(read())

    async def enough() -> bool:
        step = len(got) + 1
        await telemetry.push(steps=[*telemetry.steps(step, step), *telemetry.steps(step, step, job=other)])
        return len(got) >= 3

    await until(enough, "three steps of the job")
    call.cancel()
    [ended] = await asyncio.gather(reading, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError | RemoteError)
    assert {sample.job for sample in got} == {telemetry.job}
    assert [sample.step for sample in got] == sorted(sample.step for sample in got)


async def test_the_summary_joins_samples_and_the_events_of_all_services(telemetry: Telemetry) -> None:
    job, at = telemetry.job, now_ms()
    await telemetry.submitted()
    await telemetry.push(steps=telemetry.steps(1, 40))
    formed = [rdzv.Generation(job=job, number=number, world_size=2, attempt=1, at_ms=at + number) for number in (1, 2)]
    signal = FailureCategory.FAILURE_CATEGORY_SIGNAL
    broken = rdzv.GenerationBroken(at_ms=at + 1, number=1, cause="worker exited", rank=1, category=signal)
    await telemetry.service.tell(
        f"rendezvous/job/{job}",
        ("rendezvous.generation.GenerationFormed", rdzv.GenerationFormed(generation=formed[0])),
        ("rendezvous.generation.GenerationBroken", broken),
        ("rendezvous.generation.GenerationFormed", rdzv.GenerationFormed(generation=formed[1])),
        # Of a newer release: it is skipped and counted, and what comes after it is read.
        ("rendezvous.generation.TurnedIntoAPumpkin", rdzv.GenerationBroken()),
    )
    committed = ckpt.Committed(at_ms=at, save_id="s1", step=30, generation=1, manifest_hash="ab", shards=2)
    await telemetry.service.tell(f"checkpoint/job/{job}", ("checkpoint.Committed", committed))
    await telemetry.service.tell(f"scheduler/job/{job}", ("scheduler.job.Succeeded", s.JobSucceeded(at_ms=now_ms())))
    head = await telemetry.service.events.head()

    async def summary() -> pb.JobSummary | None:
        found = await telemetry.stub.GetJobSummary(pb.GetJobSummaryRequest(job=job))
        return found if found.position == str(head) else None

    told = await until(summary, "the summary reflects the last event")
    assert (told.job, told.step, told.total_steps) == (job, 40, 1000)
    assert (told.generation, told.world_size) == (2, 2)
    assert (told.checkpoints, told.last_checkpoint_step) == (1, 30)
    assert told.samples == 40 * 8
    [recovery] = told.recoveries
    assert (recovery.cause, recovery.category) == ("worker exited", signal)


@pytest.mark.parametrize(
    ("call", "request_", "fields"),
    [
        ("GetJobSummary", pb.GetJobSummaryRequest(job="No Such"), {"job"}),
        ("QuerySeries", pb.QuerySeriesRequest(job="No Such", max_points=-1), {"job", "names", "max_points"}),
        ("QuerySeries", pb.QuerySeriesRequest(job="j", names=["x"] * 65, from_step=-1), {"names", "from_step"}),
        ("QueryLogs", pb.QueryLogsRequest(job="No Such", tail=-1, ranks=[-1]), {"job", "tail", "ranks"}),
        ("QueryLogs", pb.QueryLogsRequest(job="j", contains="x" * 2000), {"contains"}),
        ("WatchSamples", pb.WatchSamplesRequest(job="No Such"), {"job"}),
        ("SearchLogs", pb.SearchLogsRequest(job="No Such"), {"job"}),
        ("SearchLogs", pb.SearchLogsRequest(job="j", text="?!", page_size=-1), {"text", "page_size"}),
        ("SearchLogs", pb.SearchLogsRequest(job="j", page_token="garbage", level="loud"), {"page_token", "level"}),
        ("ListHistory", pb.ListHistoryRequest(page_size=-1), {"page_size"}),
        ("ListHistory", pb.ListHistoryRequest(page_token="garbage"), {"page_token"}),
        ("GetHistory", pb.GetHistoryRequest(job="No Such"), {"job"}),
        ("GetCost", pb.GetCostRequest(by=["colour"], from_day=9, to_day=3), {"by", "from_day"}),
    ],
)
async def test_every_wrong_field_is_named(telemetry: Telemetry, call: str, request_: object, fields: set[str]) -> None:
    with refused("INVALID_ARGUMENT", "InvalidArgument") as caught:
        answer = getattr(telemetry.stub, call)(request_)
        await (drained(answer) if hasattr(answer, "__aiter__") else answer)
    assert fields_of(caught) == fields


async def test_of_a_job_that_nobody_told_of_there_is_nothing(telemetry: Telemetry) -> None:
    with refused("NOT_FOUND", "JobNotFound") as caught:
        await telemetry.stub.GetJobSummary(pb.GetJobSummaryRequest(job=telemetry.job))
    assert caught.value.metadata["job"] == telemetry.job
    query = pb.QuerySeriesRequest(job=telemetry.job, names=["loss"])
    assert not (await telemetry.stub.QuerySeries(query)).series
    assert not await drained(telemetry.stub.QueryLogs(pb.QueryLogsRequest(job=telemetry.job)))


async def test_a_search_finds_words_page_by_page(telemetry: Telemetry) -> None:
    done, odd = telemetry.lines([f"step {n} done" for n in range(5)]), telemetry.lines(["odd"], rank=1)
    await telemetry.written([*done, *odd])
    store = "elasticsearch" if telemetry.service.on_servers else "embedded"

    async def all_found() -> bool:
        page = await telemetry.stub.SearchLogs(pb.SearchLogsRequest(job=telemetry.job))
        assert page.store == store
        return len(page.records) == 6

    await until(all_found, "every line is found")
    request = pb.SearchLogsRequest(job=telemetry.job, text="done", ranks=[0], page_size=2)
    found: list[pb.LogRecord] = []
    while True:
        page = await telemetry.stub.SearchLogs(request)
        found += page.records
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert found == done


async def test_history_lists_prices_and_rebuilds_what_the_log_tells(telemetry: Telemetry) -> None:
    await telemetry.submitted()
    await telemetry.service.tell(
        f"scheduler/job/{telemetry.job}", ("scheduler.job.Cancelled", s.JobCancelled(at_ms=now_ms()))
    )
    head = str(await telemetry.service.events.head())

    async def listed() -> pb.ListHistoryResponse | None:
        found = await telemetry.stub.ListHistory(pb.ListHistoryRequest(text=telemetry.job))
        return found if found.position == head else None

    told = await until(listed, "history reflects the last event")
    assert [(job.id, job.state, job.spec.name) for job in told.jobs] == [
        (telemetry.job, jobs.JOB_STATE_CANCELLED, "gpt")
    ]
    assert (told.total, told.next_page_token) == (1, "")
    one = await telemetry.stub.GetHistory(pb.GetHistoryRequest(job=telemetry.job))
    assert (one.job, one.position) == (told.jobs[0], head)
    today = now_ms() // 86_400_000
    asked = pb.GetCostRequest(by=["job"], job=telemetry.job, from_day=today, to_day=today)
    cost = await telemetry.stub.GetCost(asked)
    assert not cost.rows, "it never held a slot"
    progress = await drained(telemetry.stub.RebuildHistory(pb.RebuildHistoryRequest()))
    assert progress[-1].done
    assert progress[-1].position == head
    assert progress[-1].kept_in == ("postgres" if telemetry.service.on_servers else "sqlite")
    assert await telemetry.stub.GetHistory(pb.GetHistoryRequest(job=telemetry.job)) == one
    with refused("NOT_FOUND", "JobNotFound"):
        await telemetry.stub.GetHistory(pb.GetHistoryRequest(job=fresh_id("job")))
