"""Finished streams leave the live state whatever goes wrong meanwhile, and nothing else does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
from prometheus_client import REGISTRY

from distroml.events import Context, NewEvent, UnknownEvent
from distroml.eventstore import (
    Append,
    Commit,
    EventStore,
    EventStoreError,
    Fenced,
    Guard,
    NotSealable,
    StoreDown,
    StoreFull,
    WrongExpectedVersion,
)
from distroml.eventstore.memory import open_event_store
from distroml.rpc import retirement
from distroml.rpc.measured import MeasuredEventStore
from distroml.rpc.retirement import Retirement, Seen

GUARD = Guard("leases/x", revision=0)
OVER = 1
"""Long ago, in Unix milliseconds."""


class Faulty(MeasuredEventStore):
    """Refuses to retire as it was told, one refusal after the other."""

    def __init__(self, *errors: EventStoreError) -> None:
        super().__init__(open_event_store(deployment="dep-1"))
        self.errors = list(errors)

    async def retire(
        self, stream: str, *, version: int, keys: Sequence[str] = (), guards: Sequence[Guard] = ()
    ) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await super().retire(stream, version=version, keys=keys, guards=guards)


async def write(store: EventStore, stream: str) -> None:
    context = Context(deployment="dep-1", project="p", actor="a", causation_id="c", correlation_id="r", time_ms=5)
    version = await store.version(stream)
    event = NewEvent(id=f"{stream}-{version}", type="test.Happened", schema=1, public=True, data=b"")
    await store.commit(Commit(context=context, appends=(Append(stream, version, (event,)),)))


def always(store: EventStore, due_ms: int | None) -> Callable[[str], Awaitable[Seen]]:
    async def look(stream: str) -> Seen:
        return Seen(await store.version(stream), due_ms)

    return look


def live(state: str) -> float:
    return REGISTRY.get_sample_value("distroml_eventstore_live_streams", {"state": state}) or 0.0


async def test_only_finished_streams_below_the_prefix_retire_and_some_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retirement, "MAX_LOOKS", 3)
    store = open_event_store(deployment="dep-1")
    names = [f"test/job/{i}" for i in range(7)]
    for name in (*names, "test/node/a"):
        await write(store, name)
    due: dict[str, int | None] = dict.fromkeys(names, OVER) | {
        "test/job/5": None,
        "test/job/6": int((time.time() + 3600) * 1000),
    }
    looks: list[str] = []
    gone: list[str] = []

    async def look(stream: str) -> Seen:
        looks.append(stream)
        return Seen(1, due[stream])

    retiring = Retirement(store, "test/job/", look, after_s=3600, retired=gone.append)
    before = REGISTRY.get_sample_value("distroml_eventstore_retired_streams_total") or 0.0
    assert [await retiring.once(GUARD) for _ in range(4)] == [True, True, False, False]
    assert await store.streams() == ["test/job/5", "test/job/6", "test/node/a"]
    assert gone == names[:5]
    # What is in use, or not long enough over, is not looked at again before it can be due.
    assert looks == names
    assert REGISTRY.get_sample_value("distroml_eventstore_retired_streams_total") == before + 5
    assert (live("in_use"), live("waiting"), live("overdue")) == (1, 1, 0)


@pytest.mark.parametrize("error", [StoreDown("etcd is away"), StoreFull("no room for objects")])
async def test_a_round_ends_where_the_stores_do_not_take_it_and_the_next_begins_with_what_was_left(
    error: EventStoreError,
):
    store = Faulty(error)
    await write(store, "test/job/a")
    retiring = Retirement(store, "test/job/", always(store, OVER), after_s=3600)
    with pytest.raises(type(error)):
        await retiring.once(GUARD)
    assert live("overdue") == 1
    await retiring.once(GUARD)
    assert await store.streams() == []


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (NotSealable("test/job/a", 9, 8), "overdue"),
        (WrongExpectedVersion("test/job/a", 1, 2), "in_use"),
        (EventStoreError("its parts are too large"), "overdue"),
    ],
)
async def test_one_stream_that_cannot_retire_holds_up_no_other(error: EventStoreError, state: str):
    store = Faulty(error)
    for name in ("test/job/a", "test/job/b"):
        await write(store, name)
    retiring = Retirement(store, "test/job/", always(store, OVER), after_s=3600)
    assert not await retiring.once(GUARD)
    assert await store.streams() == ["test/job/a"]
    assert live(state) == 1


async def test_it_goes_on_beside_its_owner_through_every_error_and_ends_with_the_lease(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(retirement, "PAUSE_S", 0.05)
    store = Faulty(StoreDown("away"), NotSealable("test/job/a", 9, 8), StoreFull("full"))
    await write(store, "test/job/a")
    reading = iter([UnknownEvent("test.New", 1), RuntimeError("a defect")])

    async def look(stream: str) -> Seen:
        if (error := next(reading, None)) is not None:
            raise error
        return Seen(await store.version(stream), OVER)

    retiring = Retirement(store, "test/job/", look, after_s=1)
    async with asyncio.timeout(60):
        async with retiring.beside(GUARD):
            while await store.streams():
                await asyncio.sleep(0.02)
        await write(store, "test/job/a")
        # Whoever has lost the lease returns.
        await retiring.run(Guard("leases/x", revision=7))
    assert await store.streams() == ["test/job/a"]
    assert live("overdue") == 0


async def test_one_that_follows_another_stream_stays_until_that_one_was_retired():
    store = open_event_store(deployment="dep-1")
    for name in ("first/job/a", "first/job/b", "test/job/a", "test/job/b", "test/job/unknown"):
        await write(store, name)
    looks: list[str] = []

    async def look(stream: str) -> Seen:
        looks.append(stream)
        return Seen(1, 0)

    retiring = Retirement(store, "test/job/", look, after_s=3600, follows="first/job/")
    await retiring.once(GUARD)
    assert looks == ["test/job/unknown"]
    await store.retire("first/job/a", version=1)
    await retiring.once(GUARD)
    assert await store.streams("test/") == ["test/job/b", "test/job/unknown"]
    assert looks == ["test/job/unknown", "test/job/a"]
    assert live("in_use") == 2


async def test_a_lost_lease_ends_a_round():
    store = open_event_store(deployment="dep-1")
    await write(store, "test/job/a")
    with pytest.raises(Fenced):
        await Retirement(store, "test/job/", always(store, OVER), after_s=1).once(Guard("leases/x", revision=7))
