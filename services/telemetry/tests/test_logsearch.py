"""Searching the embedded store: the port's promises, and the call over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from world import World

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.logstore import Line, LogStoreDown, LogStoreRefused, Page, Query
from distroml.logstore.conformance import LogSearchConformance, Store, line
from distroml.rpc import RemoteError
from distroml.telemetry.adapters.logsearch import EmbeddedLogSearch
from distroml.telemetry.history.sqlite import SqliteHistory
from distroml.telemetry.intake import Batch, new_line
from distroml.telemetry.lines import Lines, keep_up
from distroml.telemetry.live import Changes
from distroml.telemetry.past import Past
from distroml.telemetry.readmodel import ReadModel
from distroml.telemetry.server import TelemetryServicer, record_of
from distroml.telemetry.settings import Limits


def opened(path: Path) -> ReadModel:
    history = SqliteHistory(path.with_name("history.sqlite"), max_events=Limits().events)
    return ReadModel(path, Limits(), Changes(), history)


class TestEmbeddedLogSearch(LogSearchConformance):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        async with opened(tmp_path / "telemetry.sqlite") as model:

            async def keep(lines: Sequence[Line]) -> None:
                stored = model.offer(
                    Batch(node="n", lines=[new_line(record_of(one.job, one), 16_384) for one in lines])
                )
                assert stored is not None
                await stored

            yield Store(EmbeddedLogSearch(model), keep)


async def test_lines_are_searched_page_by_page_over_the_call(world: World) -> None:
    kept = [line("job-a", f"step {n}", at=n, rank=n % 2, level="error" if n > 3 else "") for n in range(6)]
    await world.push(logs=[record_of("job-a", one) for one in kept])
    request = t.SearchLogsRequest(job="job-a", text="step", ranks=[1], page_size=2, newest_first=True)
    first = await world.stub.SearchLogs(request)
    assert ([r.text for r in first.records], first.store) == ([kept[5].text, "step 3"], "embedded")
    assert first.records[0] == record_of("job-a", kept[5])
    request.page_token = first.next_page_token
    last = await world.stub.SearchLogs(request)
    assert ([r.text for r in last.records], last.next_page_token) == (["step 1"], "")
    with pytest.raises(RemoteError) as refused:
        await world.stub.SearchLogs(t.SearchLogsRequest(job="job-a", text="?!", page_size=-1, level="loud"))
    assert {field for field, _ in refused.value.violations} == {"text", "page_size", "level"}


class Away:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def search(self, query: Query) -> Page:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [(LogStoreDown("no answer"), "LogStoreDown"), (LogStoreRefused("version 8"), "LogStoreRefused")],
)
async def test_a_store_that_is_away_is_said_with_what_to_do(world: World, error: Exception, reason: str) -> None:
    past = Past(world.model, world.store)
    servicer = TelemetryServicer(world.model, world.metrics, Limits(), past, lines=Lines(Away(error), "elasticsearch"))
    context: Any = None
    with pytest.raises(Exception, match=f"{error}.*job logs JOB") as refused:
        await servicer.SearchLogs(t.SearchLogsRequest(job="job-a"), context)
    assert getattr(refused.value, "reason", "") == reason


async def test_a_file_of_an_earlier_release_gets_the_columns_that_are_new(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.sqlite"
    async with opened(path) as model:
        stored = model.offer(Batch(node="n", lines=[new_line(record_of("job-a", line("job-a", "old")), 16_384)]))
        assert stored is not None
        await stored
        for column in ("level", "attempt", "trace_id", "span_id"):
            await model._file.write(lambda db, name=column: db.execute(f"ALTER TABLE logs DROP COLUMN {name}"))
    async with opened(path) as model:
        assert not model.begun_anew
        page = await EmbeddedLogSearch(model).search(Query(job="job-a"))
    assert [(one.text, one.attempt, one.level) for one in page.lines] == [("old", 0, "")]


async def test_upkeep_goes_on_after_trouble_and_tells_health() -> None:
    told: list[str | None] = []
    rounds: asyncio.Queue[Exception | None] = asyncio.Queue()
    done = asyncio.Event()

    async def round_(now_ms: int) -> None:
        assert now_ms > 1_700_000_000_000
        if rounds.empty():
            done.set()
            await asyncio.Event().wait()
        if (error := rounds.get_nowait()) is not None:
            raise error

    for outcome in (LogStoreRefused("401"), None, LogStoreDown("gone"), None):
        rounds.put_nowait(outcome)
    task = asyncio.create_task(keep_up(round_, told.append, asyncio.Event(), every_s=0, again_s=0))
    await asyncio.wait_for(done.wait(), 10)
    task.cancel()
    await asyncio.wait([task])
    assert told == ["401", None, "gone", None]


async def test_what_a_search_found_amiss_is_looked_at_before_the_next_round() -> None:
    told: asyncio.Queue[str | None] = asyncio.Queue()
    amiss = asyncio.Event()

    async def round_(now_ms: int) -> None:
        assert now_ms

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(keep_up(round_, told.put_nowait, amiss, every_s=3600, again_s=0))
        for _ in range(2):
            assert await told.get() is None
            amiss.set()
        assert await told.get() is None
        task.cancel()
