from __future__ import annotations

import asyncio
import math
import sqlite3
from collections import Counter
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry
from story import Story
from worldlog import lines, now_ms, steps

from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.telemetry.adapters.live import read_live
from distroml.telemetry.adapters.logs import read_lines
from distroml.telemetry.adapters.plans import read_sums
from distroml.telemetry.adapters.series import STEPS, read_history
from distroml.telemetry.adapters.summaries import read_use
from distroml.telemetry.history.port import NotWritten
from distroml.telemetry.history.sqlite import SqliteHistory
from distroml.telemetry.intake import Batch, checked
from distroml.telemetry.live import Changes, Feed
from distroml.telemetry.metrics import TrainingMetrics
from distroml.telemetry.readmodel import ReadModel
from distroml.telemetry.rolling import Roller
from distroml.telemetry.settings import Limits

LIMITS = Limits(log_lines=100, log_bytes=20_000, line_bytes=500, pending_records=5000, pending_bytes=4 << 20)


def model_in(folder: Path, limits: Limits = LIMITS) -> ReadModel:
    history = SqliteHistory(folder / "history.sqlite", max_events=limits.events)
    return ReadModel(folder / "telemetry.sqlite", limits, Changes(), history)


async def store(model: ReadModel, **records: object) -> None:
    future = model.offer(checked(t.PushRequest(node="node-a", **records), line_bytes=LIMITS.line_bytes))  # type: ignore[arg-type]
    assert future is not None
    await model.flush()
    await future


async def in_writer(model: ReadModel, sql: str) -> None:
    """Do to the file what only the disk does otherwise."""
    file = model._file
    assert file._writer is not None
    await asyncio.get_running_loop().run_in_executor(file._write_thread, file._writer.execute, sql)


def one_rank(first: int, last: int, *, generation: int = 1) -> list[t.StepSample]:
    return steps("job-a", first, last, generation=generation, world=1)


async def test_the_newest_thousand_steps_are_exact_and_old_ones_thinned(tmp_path: Path) -> None:
    async with model_in(tmp_path, Limits()) as model:
        for start in range(1, 16_001, 4000):
            await store(model, steps=one_rank(start, start + 3999))
        history = await model.read(read_history, ("job-a", STEPS, 0))
        assert sum(b.stats["loss"][0] for b in history) == 16_000
        recent = await model.read(read_history, ("job-a", STEPS, 0), from_x=15_100)
        assert [b.x for b in recent] == list(range(15_100, 16_001))
        (rows,) = await model.read(lambda db: db.execute("SELECT count(*) FROM points").fetchone())
        # Levels 0 and 1 full, with what is pruned only now and then; 2 and 3 as far as they got.
        assert rows < 1100 + 1100 + 250 + 32


async def test_a_series_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        await store(model, steps=one_rank(1, 700))
    async with model_in(tmp_path) as model:
        await store(model, steps=one_rank(701, 1500))
        history = await model.read(read_history, ("job-a", STEPS, 0))
        assert sum(b.stats["loss"][0] for b in history) == 1500
        coarse = await model.read(lambda db: db.execute("SELECT count(*) FROM points WHERE level=3").fetchone()[0])
        assert coarse == 1500 // 512


async def test_a_step_told_twice_is_kept_once_and_an_older_generation_is_old_news(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        await store(model, steps=one_rank(1, 50))
        await store(model, steps=one_rank(30, 60))
        await store(model, steps=one_rank(41, 45, generation=2))
        await store(model, steps=one_rank(46, 80, generation=1))
        history = await model.read(read_history, ("job-a", STEPS, 0))
        assert [b.x for b in history] == list(range(1, 46))
        assert [b.generation for b in history[-6:]] == [1, 2, 2, 2, 2, 2]
        detail = await model.detail("job-a", count_samples=True)
        assert detail is not None
        assert detail.samples == 45 * 16


async def test_a_new_generation_replaces_coarse_history_too(tmp_path: Path) -> None:
    async with model_in(tmp_path, Limits()) as model:
        await store(model, steps=one_rank(1, 3000))
        await store(model, steps=one_rank(2500, 2600, generation=2))
        history = await model.read(read_history, ("job-a", STEPS, 0))
        assert sum(b.stats["loss"][0] for b in history) == 2600
        assert history[-1].x == 2600


async def test_live_numbers_follow_the_lead_rank(tmp_path: Path) -> None:
    end = now_ms()
    async with model_in(tmp_path) as model:
        await store(model, steps=steps("job-a", 1, 100, world=3, total=200, end_ms=end, step_s=0.5))
        live = await model.read(read_live, "job-a")
        assert (live.step, live.total_steps, live.world_size) == (100, 200, 3)
        assert live.tokens_per_s == pytest.approx(16 * 256 / 0.5)
        assert live.eta_ms == pytest.approx(end + 50_000, abs=100)


async def test_a_loss_that_is_no_number_does_not_poison_the_series(tmp_path: Path) -> None:
    samples = one_rank(1, 3)
    samples[1].loss = math.nan
    async with model_in(tmp_path) as model:
        await store(model, steps=samples)
        history = await model.read(read_history, ("job-a", STEPS, 0))
        assert ["loss" in b.stats for b in history] == [True, False, True]


async def test_lines_are_bounded_by_count_and_the_dropped_ones_counted(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        await store(model, logs=lines("job-a", [f"line {i}" for i in range(130)]))
        kept = await model.read(read_lines, "job-a")
        assert len(kept) <= LIMITS.log_lines
        assert kept[-1].text == "line 129"
        detail = await model.detail("job-a")
        assert detail is None  # lines alone make no job
        (dropped,) = await model.read(lambda db: db.execute("SELECT lines FROM dropped").fetchone())
        assert dropped == 130 - len(kept)


async def test_lines_are_bounded_by_bytes(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        await store(model, logs=lines("job-a", ["x" * 490] * 90))
        (size,) = await model.read(lambda db: db.execute("SELECT sum(bytes) FROM logs").fetchone())
        assert size <= LIMITS.log_bytes


async def test_a_line_pushed_twice_is_kept_once_and_an_incarnation_counts_anew(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        first = lines("job-a", ["one", "two"])
        await store(model, logs=first)
        again = lines("job-a", ["one", "two", "three"])
        await store(model, logs=again)
        fresh = lines("job-a", ["one"])
        fresh[0].incarnation = 1
        await store(model, logs=fresh)
        assert [x.text for x in await model.read(read_lines, "job-a")] == ["one", "two", "three", "one"]


async def test_lines_by_rank_text_and_tail(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        await store(model, logs=lines("job-a", ["alpha", "Beta", "gamma"]) + lines("job-a", ["beta two"], rank=1))
        assert [x.text for x in await model.read(read_lines, "job-a", contains="BETA")] == ["Beta", "beta two"]
        assert [x.text for x in await model.read(read_lines, "job-a", ranks=[1])] == ["beta two"]
        assert [x.text for x in await model.read(read_lines, "job-a", tail=2)] == ["gamma", "beta two"]


async def test_a_batch_too_many_is_refused_and_counted(tmp_path: Path) -> None:
    async with model_in(tmp_path, Limits(pending_records=10)) as model:
        batch = checked(t.PushRequest(steps=one_rank(1, 11)), line_bytes=100)
        assert model.offer(batch) is None
        model.note_dropped(batch)
        await store(model, steps=one_rank(20, 20))
        detail = await model.detail("job-a")
        assert detail is not None
        assert detail.dropped_samples == 11


async def test_ranks_past_the_bound_show_their_newest_values_only(tmp_path: Path) -> None:
    async with model_in(tmp_path, Limits(ranks=2)) as model:
        await store(
            model,
            steps=steps("job-a", 1, 5, world=4),
            resources=[t.ResourceSample(job="job-a", rank=3, at_ms=5000, cpu_ratio=0.5, rss_bytes=7)],
        )
        assert await model.read(read_history, ("job-a", STEPS, 3)) == []
        use = await model.read(read_use, "job-a")
        assert (use[3].step, use[3].cpu_ratio, use[3].node) == (5, 0.5, "node-a")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "other format"])
async def test_a_damaged_file_is_set_aside_and_the_model_begins_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "telemetry.sqlite"
    async with model_in(tmp_path) as model:
        await store(model, steps=one_rank(1, 500))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "garbage":
        path.write_bytes(b"no database at all" * 500)
    else:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version=99")
        connection.close()
    async with model_in(tmp_path) as model:
        assert model.begun_anew
        await store(model, steps=one_rank(1, 5))
        assert (await model.read(read_live, "job-a")).step == 5
    assert len(list(tmp_path.glob("telemetry.sqlite.damaged-*"))) == 1


async def test_a_file_of_an_older_release_keeps_its_samples(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        await store(model, steps=one_rank(1, 5))
    connection = sqlite3.connect(tmp_path / "telemetry.sqlite")
    connection.execute("CREATE TABLE jobs (job TEXT)")
    connection.close()
    async with model_in(tmp_path) as model:
        assert not model.begun_anew
        assert (
            await model.read(lambda db: db.execute("SELECT 1 FROM sqlite_master WHERE name='jobs'").fetchone()) is None
        )
        assert (await model.read(read_live, "job-a")).step == 5


async def test_damage_while_running_is_survived(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        await store(model, steps=one_rank(1, 900))
        epoch = model.epoch
        await in_writer(model, "PRAGMA wal_checkpoint(TRUNCATE)")
        path = tmp_path / "telemetry.sqlite"
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (path.stat().st_size - 4096))
        await in_writer(model, "PRAGMA shrink_memory")
        for _ in range(3):
            future = model.offer(checked(t.PushRequest(steps=one_rank(901, 905)), line_bytes=10))
            assert future is not None
            await model.flush()
            if future.exception() is None:
                break
        assert model.epoch > epoch
        assert (await model.read(read_live, "job-a")).step == 905


async def test_a_full_disk_drops_the_batch_and_the_next_one_is_taken(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        await store(model, steps=one_rank(1, 5))
        (pages,) = await model.read(lambda db: db.execute("PRAGMA page_count").fetchone())
        await in_writer(model, f"PRAGMA max_page_count={pages}")
        future = model.offer(checked(t.PushRequest(steps=one_rank(6, 2000)), line_bytes=10))
        assert future is not None
        await model.flush()
        assert isinstance(future.exception(), NotWritten)
        await in_writer(model, "PRAGMA max_page_count=1000000")
        await store(model, steps=one_rank(6, 10))
        history = await model.read(read_history, ("job-a", STEPS, 0))
        assert [b.x for b in history] == list(range(1, 11))


async def test_records_that_nobody_foresaw_are_dropped_and_the_next_ones_are_taken(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model, asyncio.timeout(20):
        poison = model.offer(Batch(node="node-a", steps=[cast("t.StepSample", None)]))
        assert poison is not None
        with pytest.raises(NotWritten, match="cannot be stored"):
            await poison
        taken = model.offer(checked(t.PushRequest(steps=one_rank(1, 5)), line_bytes=10))
        assert taken is not None
        await taken
        assert (await model.read(read_live, "job-a")).step == 5
        assert model.pending_records == 0


async def test_steps_without_an_end_have_no_estimate_and_are_stored(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        endless = one_rank(1, 5)
        for sample in endless:
            sample.total_steps = 10**18
        await store(model, steps=endless)
        live = await model.read(read_live, "job-a")
        assert (live.step, live.total_steps, live.eta_ms) == (5, 10**18, 0)


async def test_roll_ups_of_the_last_moments_are_written_at_the_end(tmp_path: Path) -> None:
    async with model_in(tmp_path) as model:
        roller = Roller(
            model, LIMITS, TrainingMetrics(max_jobs=1, ttl_s=1, clock_s=lambda: 0, registry=CollectorRegistry())
        )
        assert model.offer(checked(t.PushRequest(steps=one_rank(1, 5)), line_bytes=10)) is not None
        await roller.finish()
        # At the border of a bucket the samples lie in two.
        counted: Counter[int] = Counter()
        for row in await model.history.rollups("job-a", ["loss"]):
            counted[row.width_ms] += row.n
        assert set(counted.values()) == {5}


async def test_old_ended_jobs_lose_their_samples_and_keep_their_view(tmp_path: Path) -> None:
    limits = Limits(jobs=1)
    async with model_in(tmp_path, limits) as model:
        for name in ("job-a", "job-b"):
            await store(model, steps=steps(name, 1, 3), logs=lines(name, ["x"]))
        log = Story()
        for at_ms, name in enumerate(("job-a", "job-b"), 1):
            await log.told(model.history, *log.submitted(name), *log.ended(name, at_ms=at_ms))
        assert await model.purge() == 1
        jobs = await model.read(lambda db: [j for (j,) in db.execute("SELECT DISTINCT job FROM points")])
        assert jobs == ["job-b"]


def test_a_slow_reader_loses_the_oldest_items() -> None:
    feed = Feed[int](3)
    for i in range(5):
        feed.put(i)
    assert feed.dropped == 2


def test_a_choice_of_sums_is_read_with_patience() -> None:
    assert read_sums('{"choice": "flat for all sizes", "more": 1}') == "flat for all sizes"
    for odd in ("", "[", "[]", '{"choice": 3}', '{"sizes": []}'):
        assert read_sums(odd) == ""
