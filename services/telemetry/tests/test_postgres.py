"""Telemetry over a real PostgreSQL: away for a while, shared by two replicas, and unfit in each way."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import psycopg
import pytest
from story import Story
from world import World, until
from worldlog import DEPLOYMENT, EventLog, now_ms, steps

from deploy.stack.running import Running
from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.eventstore.memory import open_event_store
from distroml.rpc.errors import RemoteError
from distroml.rpc.postgres import PostgresUnfit, check_version, survey
from distroml.statestore.memory import MemoryDatabase
from distroml.telemetry.domain.rollup import WIDTHS_MS
from distroml.telemetry.history.port import HistoryAway, Rebuilt
from distroml.telemetry.history.postgres import ANSWER_S, PostgresHistory, schema_of
from distroml.telemetry.settings import Limits


async def health(world: World) -> str:
    """What `/healthz` says."""

    def ask() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{world.service.metrics_port}/healthz", timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()

    return await asyncio.to_thread(ask)


async def test_a_server_that_was_gone_is_caught_up_with_and_nothing_is_lost(
    tmp_path: Path, postgres: Running, database: str
) -> None:
    now = now_ms()
    world = World(tmp_path, Limits(rollup_rows=50), history=PostgresHistory(database, max_events=100))
    async with world.running():
        await world.log.submit("job-a", at_ms=1000)
        await world.log.start("job-a", at_ms=2000)
        await world.folded()
        await world.push(steps=steps("job-a", 1, 4, world=1, end_ms=now))
        await world.roller.once()
        await asyncio.to_thread(postgres.kill)
        try:
            await world.log.job("job-a", "Succeeded", s.JobSucceeded(at_ms=3_602_000), at_ms=3_602_000)

            async def said() -> bool:
                return "PostgreSQL at" in await health(world)

            await world.until(said, "health that names PostgreSQL")
            # Samples are taken, and answered, as ever; roll-ups wait, bounded and counted.
            answer = await world.push(steps=steps("job-a", 5, 8, world=1, end_ms=now + 1000))
            assert answer.dropped_samples == 0
            await world.roller.once()
            for step in (9, 10):
                await world.push(steps=steps("job-a", step, step, world=1, end_ms=now + step * 10_000_000))
            await world.roller.once()
            series = await world.stub.QuerySeries(t.QuerySeriesRequest(job="job-a", names=["loss"]))
            assert [p.step for p in series.series[0].points] == [*range(1, 11)]
            with pytest.raises(RemoteError) as away:
                await world.stub.GetCost(t.GetCostRequest(to_day=10))
            assert (away.value.status.name, away.value.reason) == ("UNAVAILABLE", "HistoryAway")
            assert database.rpartition(":")[0].rpartition(":")[2] not in str(away.value)
        finally:
            await asyncio.to_thread(postgres.restart)
        await world.folded()
        view = await world.model.history.view("job-a")
        assert view is not None
        assert view.state == "succeeded"
        cost = await world.stub.GetCost(t.GetCostRequest(by=["job", "day"], to_day=10))
        assert [(r.job, r.day, r.slot_hours, r.money) for r in cost.rows] == [("job-a", 0, 2.0, "4.80")]
        assert (cost.currency, cost.position) == ("EUR", str(await world.store.head()))

        async def rolled() -> bool:
            await world.roller.once()
            rows = await world.model.history.rollups("job-a", ["loss"])
            return sum(row.n for row in rows if row.width_ms == WIDTHS_MS[-1]) == 9

        await world.until(rolled, "roll-ups of before, of meanwhile, and what there was room for")
        dropped = world.registry.get_sample_value(
            "distroml_telemetry_dropped_total", {"kind": "rollup", "where": "queue"}
        )
        assert dropped

        async def well() -> bool:
            return "PostgreSQL" not in await health(world)

        await world.until(well, "health that is well again")


async def test_a_server_that_is_stopped_is_away_until_it_goes_on(postgres: Running, database: str) -> None:
    story = Story()
    async with PostgresHistory(database, max_events=100) as history:
        await story.told(history, *story.submitted("job-a"))
        history.answer_s = 1.0
        begun = psutil.Process(postgres.pid)
        stopped = [begun, *begun.children(recursive=True)]
        for process in stopped:
            process.suspend()
        try:
            with pytest.raises(HistoryAway, match="gives no answer"):
                await story.told(history, *(ended := story.ended("job-a")))
            # The next ones do not wait.
            with pytest.raises(HistoryAway, match="gives no answer"):
                await history.counts()
        finally:
            for process in stopped:
                process.resume()
            history.answer_s = ANSWER_S

        async def back() -> bool:
            try:
                return await history.cursor() == ended[-1].position
            except HistoryAway:
                return False

        # What was asked for in vain happened after all; whoever repeats it is told to look.
        await until(back, "the write that nobody waited for")
        with pytest.raises(Rebuilt):
            await story.told(history, *ended)
        assert await history.counts() == {"succeeded": 1}


async def test_a_server_that_is_stopped_keeps_nobody_from_ending(postgres: Running, database: str) -> None:
    begun = psutil.Process(postgres.pid)
    history = PostgresHistory(database, max_events=100)
    async with history:
        await history.counts()
        stopped = [begun, *begun.children(recursive=True)]
        for process in stopped:
            process.suspend()
        history.answer_s = 0.5
        try:
            with pytest.raises(HistoryAway, match="gives no answer"):
                await history.counts()
            async with asyncio.timeout(30):
                await history.__aexit__()
        finally:
            for process in stopped:
                process.resume()


async def test_a_server_that_went_without_a_word_is_noticed(database: str) -> None:
    async with PostgresHistory(database, max_events=100) as history:
        await history.counts()
        pool = history._pool
        assert pool is not None
        with pool.connection() as connection, socket.socket(fileno=os.dup(connection.fileno())) as end:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


async def test_of_two_replicas_one_projects_both_answer_and_the_other_takes_over(tmp_path: Path, database: str) -> None:
    store = open_event_store(MemoryDatabase(DEPLOYMENT))
    log = EventLog(store)
    first = World(tmp_path / "a", Limits(), store, PostgresHistory(database, max_events=100))
    second = World(tmp_path / "b", Limits(), store, PostgresHistory(database, max_events=100))
    async with second.running():
        async with first.running():
            await log.submit("job-a", at_ms=1000)
            await log.start("job-a", at_ms=2000)
            await first.folded()
            await second.folded()
            assert sorted([first.projector.leads, second.projector.leads]) == [False, True]
            # Samples go to one of them; the other answers from roll-ups.
            await first.push(steps=steps("job-a", 1, 40, world=1, end_ms=now_ms()))
            await first.roller.once()
            for world in (first, second):
                asked = t.QuerySeriesRequest(job="job-a", names=["loss"])
                (series,) = (await world.stub.QuerySeries(asked)).series
                assert series.points[-1].step == 40
                summary = await world.stub.GetJobSummary(t.GetJobSummaryRequest(job="job-a"))
                assert summary.step == 40
                past = await world.stub.GetHistory(t.GetHistoryRequest(job="job-a"))
                assert (past.job.spec.name, past.job.attempt) == ("gpt", 1)
        await log.job("job-a", "Succeeded", s.JobSucceeded(at_ms=9000))
        await second.folded()
        assert second.projector.leads
        (job,) = (await second.stub.ListHistory(t.ListHistoryRequest(page_size=5))).jobs
        assert job.finished_at.ToMilliseconds() == 9000
        progress = [p async for p in second.stub.RebuildHistory(t.RebuildHistoryRequest())]
        assert (progress[-1].done, progress[-1].kept_in) == (True, "postgres")
        # The projection goes on, on the new one.
        await log.submit("job-b")
        await second.folded()
        assert await second.model.history.view("job-b") is not None
    await store.close()


async def test_unfit_servers_are_named(database: str) -> None:
    async def why(address: str) -> str:
        history = PostgresHistory(address, max_events=10)
        async with history:
            with pytest.raises(HistoryAway) as away:
                await history.counts()
        assert "secret" not in str(away.value)
        return str(away.value)

    user, _, place = database.rpartition("@")
    name = user.removeprefix("postgresql://").partition(":")[0]
    assert "refuses our user or password" in await why(f"postgresql://{name}:wrong-secret@{place}")
    assert "no such database" in await why(f"{database}x")
    assert "see that the server runs there" in await why("postgresql://u:secret@127.0.0.1:9/db")
    async with PostgresHistory(database, max_events=10) as history:
        await history.counts()
    with psycopg.connect(database) as connection:
        connection.execute("UPDATE distroml.alembic_version SET version_num='h9999'")
    assert "made by a newer release (step h9999)" in await why(database)
    assert survey(database).version.startswith("15.")
    with pytest.raises(PostgresUnfit, match=r"12.9 is too old: 13 or newer"):
        check_version(cast("Any", SimpleNamespace(info=SimpleNamespace(server_version=120009))))
    with pytest.raises(PostgresUnfit, match="no address"):
        survey("mysql://u:secret@h/db")


def test_each_deployment_has_a_schema_of_its_own() -> None:
    deployments = (
        "dep-1a2b",
        "dep_1a2b",
        "Dep-1a2b",
        "dep--1a2b",
        "dep-1a2b-",
        "a" * 34,
        "a" * 35,
        "a" * 36,
        "ö",
        "ü",
        "-",
    )
    schemas = [schema_of(one) for one in deployments]
    assert schemas[0] == "distroml_dep_1a2b"
    assert len(set(schemas)) == len(schemas)
    for schema in schemas:
        # Statements name it without quotes, and a rebuild lengthens it.
        assert re.fullmatch(r"distroml(_[a-z0-9]+)+", schema)
        assert len(f"{schema}__building_12345678") <= 63
