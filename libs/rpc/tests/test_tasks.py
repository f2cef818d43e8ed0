from __future__ import annotations

import asyncio

from distroml.rpc import Backoff
from distroml.rpc.tasks import supervise


def test_waits_grow_to_their_bound_and_are_spread() -> None:
    backoff = Backoff(0.1, 1.0)
    waits = [backoff.step() for _ in range(8)]
    for wait, longest in zip(waits, (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0), strict=True):
        assert longest / 2 <= wait <= longest
    assert len(set(waits)) == len(waits)


def test_success_begins_anew() -> None:
    backoff = Backoff(0.1, 1.0)
    for _ in range(5):
        backoff.step()
    backoff.reset()
    assert backoff.step() <= 0.1


async def test_what_went_wrong_in_a_group_of_tasks_is_told() -> None:
    told: list[str] = []

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail("no room"))
            tasks.create_task(fail("no way"))

    async def fail(why: str) -> None:
        raise RuntimeError(why)

    running = asyncio.create_task(supervise("cycle", work, lambda _, why: told.append(why or ""), Backoff(60, 60)))
    async with asyncio.timeout(10):
        while len(told) < 2:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert told == ["", "RuntimeError: no room; RuntimeError: no way"]


async def test_one_that_fails_while_it_ends_ends_all_the_same() -> None:
    begun: list[int] = []

    async def work() -> None:
        begun.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            if len(begun) == 1:
                raise RuntimeError("the lease cannot be given back: nobody answers")

    running = asyncio.create_task(supervise("judge", work, lambda _, why: None, Backoff(0.01, 0.01)))
    async with asyncio.timeout(10):
        while not begun:
            await asyncio.sleep(0)
        running.cancel()
        while not running.done() and len(begun) == 1:
            await asyncio.sleep(0)
    assert running.cancelled()
