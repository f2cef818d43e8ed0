"""What every back end of history keeps: the same tests on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import psutil
import psycopg
import pytest
from story import DAY_MS, HOUR_MS, Story

from distroml.api.scheduler.v1 import events_pb2 as s
from distroml.eventstore.memory import open_event_store
from distroml.statestore.memory import MemoryDatabase
from distroml.telemetry.domain.rollup import WIDTHS_MS, Rollup, RollupBuffer, finest
from distroml.telemetry.history.db import Row
from distroml.telemetry.history.folding import PROJECTED_TABLES
from distroml.telemetry.history.port import BeingRebuilt, Filter, History, NotWritten, Rebuilt
from distroml.telemetry.history.postgres import PostgresHistory
from distroml.telemetry.history.rebuild import rebuild
from distroml.telemetry.history.sqlite import SqliteHistory
from distroml.telemetry.projecting import Reader, pages


@pytest.fixture(params=["sqlite", "postgres"])
async def history(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[History]:
    made: History
    if request.param == "sqlite":
        made = SqliteHistory(tmp_path / "history.sqlite", max_events=300)
    else:
        made = PostgresHistory(cast("str", request.getfixturevalue("database")), max_events=300)
    async with made:
        yield made


@pytest.fixture
def other(request: pytest.FixtureRequest, history: History) -> History:
    """The history as another service has it; a file has one only."""
    if isinstance(history, SqliteHistory):
        return history
    return PostgresHistory(cast("str", request.getfixturevalue("database")), max_events=300)


_BUILDER = "distroml.telemetry.history.builder"

Folded = Callable[[], dict[str, list[str]]]


@pytest.fixture
def folded(request: pytest.FixtureRequest, history: History, tmp_path: Path) -> Folded:
    """Reads every row that was folded, by table."""

    def on(db: sqlite3.Connection | psycopg.Connection[Row]) -> dict[str, list[str]]:
        return {
            name: sorted(map(repr, db.execute(f"SELECT * FROM {name}").fetchall()))
            for name in (*PROJECTED_TABLES, "meta")
        }

    def read() -> dict[str, list[str]]:
        if isinstance(history, SqliteHistory):
            with closing(sqlite3.connect(tmp_path / "history.sqlite")) as file:
                return on(file)
        address = cast("str", request.getfixturevalue("database"))
        with psycopg.connect(address, options="-c search_path=distroml") as server:
            return on(server)

    return read


async def test_events_count_once_and_the_cursor_moves_with_them(history: History) -> None:
    story = Story()
    assert await history.cursor() is None
    events = [*story.submitted("job-a", name="digits"), *story.started("job-a", at_ms=2000)]
    assert await story.told(history, *events) == {"job-a"}
    assert await history.cursor() == events[-1].position
    before = await history.view("job-a")
    assert before is not None
    assert (before.name, before.state, before.placed_workers) == ("digits", "running", 2)
    assert await story.told_again(history, events) == set()
    assert await history.cursor() == story.at
    assert await history.view("job-a") == before
    kept = await history.events("job-a")
    assert [e.type.rpartition(".")[2] for e in kept] == ["Started", "AttemptStarted", "Queued", "Submitted"]
    assert '"reason":"WaitingForSlots"' in kept[2].json.replace(" ", "")
    assert [e.version for e in await history.events("job-a", after=(3, 0))] == [4]
    assert await history.view("job-b") is None


async def test_who_does_not_know_where_history_stands_folds_nothing(history: History) -> None:
    story = Story()
    await story.told(history, *story.submitted("job-a"))
    late = Story()
    with pytest.raises(Rebuilt):
        await late.told(history, *late.submitted("job-b"))
    assert await history.view("job-b") is None
    # What failed left nothing behind in memory either.
    await story.told(history, *story.ended("job-a"))
    view = await history.view("job-a")
    assert view is not None
    assert view.state == "succeeded"


async def test_lists_are_newest_first_by_state_project_and_text(history: History) -> None:
    story = Story()
    for i in range(7):
        project = "vision" if i % 2 else "default"
        await story.told(history, *story.submitted(f"job-{i}", at_ms=1000 + i // 2, project=project, name=f"n%{i}"))
    await story.told(history, *story.ended("job-3"), *story.event_unknown("job-x"))
    everything = await history.jobs(Filter())
    names = [view.job for view in everything.views]
    assert names == ["job-6", "job-4", "job-5", "job-2", "job-3", "job-0", "job-1"]
    assert (everything.total, everything.position) == (7, str(story.at))
    paged: list[str] = []
    before = None
    while views := (await history.jobs(Filter(), before=before, limit=3)).views:
        paged += [view.job for view in views]
        before = (views[-1].submitted_ms, views[-1].job)
    assert paged == names
    assert [v.job for v in (await history.jobs(Filter(), offset=5, limit=5)).views] == names[5:]
    assert [v.job for v in (await history.jobs(Filter(states=("succeeded",)))).views] == ["job-3"]
    assert [v.job for v in (await history.jobs(Filter(project="vision"))).views] == ["job-5", "job-3", "job-1"]
    assert [v.job for v in (await history.jobs(Filter(text="N%5"))).views] == ["job-5"]
    assert (await history.jobs(Filter(text="n_5"))).total == 0
    assert await history.counts() == {"queued": 6, "succeeded": 1}
    assert await history.ended(["job-1", "job-3"]) == ["job-3"]
    cursor = await history.cursor()
    assert cursor is not None
    assert await history.changed_since(cursor.revision - 2) == {"job-3", "job-x"}


async def test_the_newest_plan_stays_and_events_of_a_job_are_bounded(history: History) -> None:
    story = Story()
    await story.told(history, *story.planned("job-a", 2, "ab"), *story.planned("job-a", 1, "cd"))
    plan = await history.plan("job-a")
    assert plan is not None
    assert (plan.generation, plan.type) == (2, "rendezvous.plan.PlanChosen")
    assert await history.plan("job-b") is None
    for _ in range(8):
        await story.told(history, *[e for i in range(80) for e in story.saved("job-a", i)])
    kept = await history.events("job-a", limit=10_000)
    assert 300 <= len(kept) < 300 + 256 + 80
    assert kept[0].version == 640


async def test_slot_time_is_cut_at_midnight_and_what_is_held_counts_until_now(history: History) -> None:
    story = Story()
    noon = 20_000 * DAY_MS + 12 * HOUR_MS
    await story.told(history, *story.submitted("job-a"), *story.started("job-a", at_ms=noon, slots=4))
    await story.told(history, *story.resized("job-a", at_ms=noon + 6 * HOUR_MS, slots=2))
    await story.told(history, *story.ended("job-a", at_ms=noon + 36 * HOUR_MS))
    await story.told(history, *story.submitted("job-b", project="vision"), *story.started("job-b", at_ms=noon, slots=1))
    held = [(p.day, p.slots, p.slot_ms // HOUR_MS) for p in await history.slot_times("job-a")]
    assert held == [(20_000, 4, 24), (20_000, 2, 12), (20_001, 2, 48)]

    async def hours(
        *by: str, first: int = 20_000, last: int = 20_001, **only: object
    ) -> list[tuple[str, str, int, int]]:
        now = noon + 18 * HOUR_MS
        rows = await history.used(by, days=(first, last), now_ms=now, **only)  # type: ignore[arg-type]
        return [(u.job, u.project, u.day, u.slot_ms // HOUR_MS) for u in rows]

    assert await hours() == [("", "", 0, 84 + 18)]
    assert await hours("job") == [("job-a", "", 0, 84), ("job-b", "", 0, 18)]
    assert await hours("project", "day") == [
        ("", "default", 20_000, 36), ("", "default", 20_001, 48), ("", "vision", 20_000, 12), ("", "vision", 20_001, 6),
    ]  # fmt: skip
    assert await hours("day", job="job-b", first=20_001) == [("", "", 20_001, 6)]
    assert await hours("job", project="nobody") == []
    # Where there are more than may be given: the largest.
    assert await hours("job", limit=1) == [("job-a", "", 0, 84)]
    assert await hours("project", "day", limit=2) == [("", "default", 20_000, 36), ("", "default", 20_001, 48)]


async def test_rollups_are_put_together_in_any_order_and_each_call_counts_once(history: History) -> None:
    def rows(*values: tuple[float, int, int]) -> tuple[Rollup, ...]:
        buffer = RollupBuffer(max_rows=100)
        for value, at_ms, step in values:
            buffer.add("job-a", {"loss": value}, at_ms=at_ms, step=step, generation=1)
        return buffer.take()

    late, early = rows((2.0, 8000, 80), (9.0, 9000, 90)), rows((4.0, 1000, 10))
    await history.add_rollups(late, writer="a", sequence=1, now_ms=1)
    await history.add_rollups(early, writer="b", sequence=1, now_ms=1)
    await history.add_rollups(late, writer="a", sequence=1, now_ms=1)
    row = next(r for r in await history.rollups("job-a", ["loss"]) if r.width_ms == WIDTHS_MS[0])
    assert (row.n, row.total, row.low, row.high, row.last, row.step) == (3, 15.0, 2.0, 9.0, 9.0, 90)
    await history.add_rollups(rows((1.0, 2 * HOUR_MS, 500)), writer="a", sequence=2, now_ms=2)
    assert [(r.job, r.last, r.step) for r in await history.newest(["job-a", "job-b"])] == [("job-a", 1.0, 500)]
    assert await history.rollups("job-a", ["other"]) == []
    assert await history.drop_rollups({WIDTHS_MS[0]: HOUR_MS, WIDTHS_MS[1]: 0}) == 1
    series = finest(await history.rollups("job-a"))
    assert [(r.width_ms, r.n) for r in series] == [(WIDTHS_MS[1], 3), (WIDTHS_MS[0], 1)]


async def test_forgetting_leaves_rollups(history: History) -> None:
    story = Story()
    await story.told(history, *story.submitted("job-a"), *story.started("job-a", at_ms=5))
    await history.add_rollups([_row("job-a")], writer="a", sequence=1, now_ms=1)
    await history.forget()
    assert await history.cursor() is None
    assert (await history.jobs(Filter())).total == 0
    assert len(await history.rollups("job-a")) == 1
    other = Story("log-b")
    await other.told(history, *other.submitted("job-a"))
    view = await history.view("job-a")
    assert view is not None
    assert view.state == "queued"


async def test_history_is_made_anew_beside_the_old_one_which_answers_meanwhile(history: History) -> None:
    from worldlog import EventLog

    store = open_event_store(MemoryDatabase("dep-test"))
    log = EventLog(store)
    for i in range(20):
        await log.submit(f"job-{i}")
        await log.start(f"job-{i}")
    story = Story()
    await story.told(history, *story.submitted("job-old"))
    await history.add_rollups([_row("job-1")], writer="a", sequence=1, now_ms=1)
    seen: list[int] = []
    async for progress in rebuild(history, store, page=7):
        seen.append(progress.events)
        if not progress.done:
            assert await history.view("job-old") is not None
    assert progress.done
    assert progress.position == progress.head == await history.cursor()
    assert await history.view("job-old") is None
    assert (await history.jobs(Filter(), limit=100)).total == 20
    assert len(await history.rollups("job-1")) == 1
    # A projector that stood at the old one's end does not go on from there.
    with pytest.raises(Rebuilt):
        await story.told(history, *story.ended("job-old"))
    # Once more, over what the first time left.
    assert [p.done async for p in rebuild(history, store)][-1]
    await store.close()


async def test_a_history_made_anew_has_the_rows_of_the_one_kept_live(history: History, folded: Folded) -> None:
    from worldlog import EventLog

    store = open_event_store(MemoryDatabase("dep-test"))
    log = EventLog(store)
    for i in range(6):
        job, at = f"job-{i}", 20_000 * DAY_MS + i * HOUR_MS
        await log.submit(job, at_ms=at)
        await log.start(job, at_ms=at + 1)
        await log.plan(job, generation=1, at_ms=at + 2)
        await log.checkpoint(job, 100, at_ms=at + 3)
        await log.lose(job, 1, step=120, at_ms=at + DAY_MS)
        await log.generation(job, 2, at_ms=at + DAY_MS + 1)
        await log.measured(job, generation=1, step_s=0.2, verdict="kept")
        await log.schemes(job, generation=2, step=130, buckets=2, to="int8", why="slower")
        await log.advise(job, generation=2, step=140)
        await log.job(job, "TurnedIntoAPumpkin", s.JobSucceeded(at_ms=at), at_ms=at)
        await log.checkpoint(job, 200, generation=2, at_ms=at + DAY_MS + 2)
        if i % 2:
            await log.job(job, "Succeeded", s.JobSucceeded(at_ms=at + 2 * DAY_MS), at_ms=at + 2 * DAY_MS)
    reader, after = Reader(), None
    async for events in pages(store, None, limit=5):
        after_next = events[-1].position
        await history.apply(reader.projected(events), after=after, cursor=after_next)
        after = after_next
    kept = folded()
    assert {name for name, rows in kept.items() if not rows} == set()
    assert [p.done async for p in rebuild(history, store, page=11)][-1]
    assert folded() == kept
    await store.close()


async def test_one_is_made_anew_at_a_time_and_one_that_is_given_up_leaves_nothing(
    history: History, other: History, folded: Folded
) -> None:
    from worldlog import EventLog

    store = open_event_store(MemoryDatabase("dep-test"))
    log = EventLog(store)
    for i in range(4):
        await log.submit(f"job-{i}")
    story = Story()
    await story.told(history, *story.submitted("job-old"))
    before = folded()
    events = await store.read()
    async with history.anew() as first:
        await first.add(events[:3])
        for asked in (history, other):
            with pytest.raises(BeingRebuilt, match="wait for its end"):
                async with asked.anew():
                    pass
        await first.add(events[3:])
    # Left before it took the place.
    assert folded() == before
    async with other.anew() as second:
        await second.add(events)
        await second.replace()
    assert {view.job for view in (await history.jobs(Filter())).views} == {f"job-{i}" for i in range(4)}
    made = folded()
    # A process that is killed is told, and changes nothing.
    async with history.anew() as third:
        await third.add(events[:2])
        # It is a copy of this process for a moment, before it is the one that was asked for.
        while not (builders := _builders()):
            await asyncio.sleep(0.01)
        (builder,) = builders
        builder.kill()
        with pytest.raises(NotWritten, match="ended with status -9"):
            await third.replace()
    assert folded() == made
    if other is not history:
        await other.__aexit__()
    await store.close()


def _builders() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        # Another test's may have ended a moment ago.
        with suppress(psutil.NoSuchProcess):
            if _BUILDER in child.cmdline():
                found.append(child)
    return found


def _row(job: str) -> Rollup:
    return Rollup(
        job=job, metric="loss", width_ms=10_000, start_ms=0, n=1, total=1, low=1, high=1, last=1, last_ms=1, step=1,
        generation=1,
    )  # fmt: skip
