from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from distroml.objectstore import ObjectStore, ObjectStoreDown, ObjectStoreRefused
from distroml.objectstore.later import LaterObjectStore
from distroml.objectstore.memory import open_object_store
from distroml.rpc import stores

nothing = cast(Any, None)


async def test_an_embedded_store_that_takes_no_write_is_told_for_as_long_as_it_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "EMBEDDED_S", 0.01)
    trouble, told = ["no room"], list[tuple[str, str | None]]()
    embedded = stores.Stores(nothing, nothing, nothing, trouble=lambda: trouble[0])
    watching = asyncio.create_task(embedded.watch(lambda part, why: told.append((part, why))))
    try:
        async with asyncio.timeout(10):
            while (stores.STORE, "no room") not in told:
                await asyncio.sleep(0.01)
            trouble[0] = ""
            while (stores.STORE, None) not in told:
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


class Server:
    """A server of objects that is away, and comes."""

    def __init__(self) -> None:
        self.trouble: ObjectStoreDown | None = ObjectStoreDown("no answer from S3")
        self.asked = 0

    def open(self) -> ObjectStore:
        self.asked += 1
        if self.trouble is not None:
            raise self.trouble
        return open_object_store()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LOOK_S", 0.01)


async def told(opened: stores.Stores, seen: Callable[[list[str | None]], bool]) -> None:
    """Wait until health was told that of the store of objects."""
    said = list[str | None]()
    watching = asyncio.create_task(opened.watch(lambda part, why: said.append(why) if part == stores.OBJECTS else None))
    try:
        async with asyncio.timeout(10):
            while not seen(said):
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_service_starts_while_its_store_of_objects_is_away_and_uses_it_as_soon_as_it_is_there(
    quick: None,
) -> None:
    server = Server()
    opened = stores.Stores(nothing, nothing, server.open)
    objects = opened.objects
    with pytest.raises(ObjectStoreDown, match="no answer from S3"):
        objects.put("k", b"1")
    await told(opened, lambda said: said[-2:] == ["no answer from S3"] * 2)
    server.trouble = None
    await told(opened, lambda said: said == [None])
    objects.put("k", b"1")
    assert opened.objects.get("k") == b"1"
    asked = server.asked
    assert list(objects.stream("k")) == [b"1"]
    assert server.asked == asked
    opened.close_objects()


async def test_it_opens_by_its_first_use_whoever_watches() -> None:
    server = Server()
    opened = stores.Stores(nothing, nothing, server.open)
    assert opened.objects is opened.objects
    server.trouble = None
    assert opened.objects.list() == []


async def test_a_store_of_objects_that_refuses_us_keeps_a_service_from_starting() -> None:
    server = Server()
    server.trouble = ObjectStoreRefused("belongs to another deployment")
    with pytest.raises(ObjectStoreRefused, match="another deployment"):
        _ = stores.Stores(nothing, nothing, server.open).objects


class Gate:
    """A lock that counts who came to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.came = 0

    def __enter__(self) -> None:
        self.came += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


async def test_who_waits_for_a_try_in_vain_is_answered_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try may take as long as the server is silent, and calls hold threads, of which there are few."""
    server, opening, silent = Server(), threading.Event(), threading.Event()

    def open() -> ObjectStore:
        opening.set()
        silent.wait(10)
        return server.open()

    objects, gate = LaterObjectStore(open), Gate()
    monkeypatch.setattr(objects, "_opening", gate)
    first = asyncio.create_task(asyncio.to_thread(objects.head, "k"))
    await asyncio.to_thread(opening.wait, 10)
    others = [asyncio.create_task(asyncio.to_thread(objects.head, "k")) for _ in range(3)]
    async with asyncio.timeout(10):
        while gate.came < 4:
            await asyncio.sleep(0.01)
    silent.set()
    ends = await asyncio.gather(first, *others, return_exceptions=True)
    assert [type(end) for end in ends] == [ObjectStoreDown] * 4
    assert server.asked == 1
