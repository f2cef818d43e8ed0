"""The read model against the log it is folded from."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from distroml.eventstore.sqlite import open_event_store
from distroml.scheduler import board as board_module
from distroml.scheduler.board import Board
from distroml.scheduler.domain import ledger as pool
from distroml.scheduler.domain.job import commands as c
from distroml.scheduler.domain.plan import Step
from distroml.scheduler.domain.spec import JobSpec, Placement, Slot, completed
from distroml.scheduler.signals import Pulse
from distroml.scheduler.streams import Streams
from distroml.statestore.sqlite import open_state_store

SPEC = completed(JobSpec(name="x", command=("a.py",)), project="default")
JOBS = 60


def submission(index: int) -> Step:
    return Step(job=f"job-{index}", job_commands=(c.Submit(at_ms=index, job=f"job-{index}", spec=SPEC),))


@pytest.mark.parametrize("batch", [4, 7, 1000])
async def test_nothing_is_missed_however_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int):
    """Small batches end inside commits, readers are cancelled anywhere, and commits go on all the time."""
    monkeypatch.setattr(board_module, "_BATCH", batch)
    events, state = open_event_store(tmp_path / "control.sqlite"), open_state_store(tmp_path / "control.sqlite")
    streams = Streams(events, "dep-1")
    pulse = Pulse(state)
    board = Board(streams, pulse, finished_kept=1000)
    chance = random.Random(batch)
    stop = asyncio.Event()

    async def impatient() -> None:
        while not stop.is_set():
            reading = asyncio.create_task(board.refresh())
            await asyncio.sleep(chance.random() * 0.003)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    tasks = [asyncio.create_task(pulse.run()), asyncio.create_task(board.run()), asyncio.create_task(impatient())]
    try:

        async def submit(first: int) -> None:
            for index in range(first, JOBS, 4):
                await streams.commit_steps([submission(index)], context=streams.context())

        await asyncio.gather(*(submit(first) for first in range(4)))
        head = await events.head()
        assert await board.at_least(head, 10)
        assert {entry.job.id for entry in board.page(None)} == {f"job-{index}" for index in range(JOBS)}
        assert len(board.pending()) == JOBS
        fresh = Board(streams, pulse, finished_kept=1000)
        await fresh.refresh()
        assert [entry.job for entry in fresh.page(None)] == [entry.job for entry in board.page(None)]
        assert [entry.version for entry in fresh.page(None)] == [entry.version for entry in board.page(None)]
    finally:
        stop.set()
        await asyncio.gather(tasks.pop(), return_exceptions=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await events.close()
        await state.close()


async def test_finished_jobs_stay_in_the_snapshot_while_they_hold_slots(world_of: Any):
    world = world_of()
    streams = Streams(world.events, "dep-1")
    gang = (Placement("a", ("0",)),)
    steps = [
        Step(ledger_commands=(pool.OfferSlots(node="a", slots=(Slot("0"),)),)),
        submission(1),
        Step(
            job="job-1",
            job_commands=(c.Admit(at_ms=2, placement=gang), c.Finish(at_ms=3, attempt=1, outcome="Succeeded")),
            ledger_commands=(pool.Assign(job="job-1", attempt=1, placement=gang),),
        ),
    ]
    for step in steps:
        await streams.commit_steps([step], context=streams.context())
    followed = Board(streams, Pulse(world.state), finished_kept=10)
    await followed.refresh()
    assert set(followed.jobs) == {"job-1"}
    stopped = (pool.NoteStopped(job="job-1", attempt=1, node="a"), pool.Free(job="job-1", attempt=1, node="a"))
    await streams.commit_steps([Step(ledger_commands=stopped)], context=streams.context())
    await followed.refresh()
    loaded = Board(streams, Pulse(world.state), finished_kept=10)
    await loaded.refresh()
    assert set(followed.jobs) == set(loaded.jobs) == set()
    assert followed.ledger == loaded.ledger
