"""Two replicas on real servers: one works, the other takes over, and the log is whole."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from distroml.events import Context, NewEvent
from distroml.eventstore import Append, Commit
from distroml.observability import names
from distroml.observability.metrics import REGISTRY
from distroml.relay.service import install
from distroml.relay.settings import RelaySettings
from distroml.rpc import Service, SettingsError, Stores, open_stores

CONTEXT = Context(deployment="d", project="p", actor="ann", causation_id="c", correlation_id="r", time_ms=1)


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.sleep(0.02)


async def commit(stores: Stores, version: int) -> int:
    event = NewEvent(id=f"e{version}", type="test.Counted", schema=1, public=False, data=b"{}")
    return (await stores.events.commit(Commit(context=CONTEXT, appends=(Append("s/a", version, (event,)),)))).revision


async def replica(settings: RelaySettings, closing: AsyncExitStack) -> Service:
    stores = await closing.enter_async_context(open_stores(settings))
    service = await closing.enter_async_context(Service(settings))
    assert stores.servers is not None
    install(service, settings, stores.servers)
    await service.start()
    return service


def metric(name: str) -> float:
    value = REGISTRY.get_sample_value(name)
    assert value is not None
    return value


async def test_another_replica_goes_on_where_one_ends(settings: RelaySettings) -> None:
    async with AsyncExitStack() as closing, open_stores(settings) as stores:
        assert stores.servers is not None
        outbox = stores.servers.events.outbox
        first = await replica(settings, closing)
        last = [await commit(stores, version) for version in range(20)][-1]
        await until(lambda: gone(outbox))
        assert (await outbox.trimmed())[0] == last

        second = await replica(settings, closing)
        await first.drain()
        last = [await commit(stores, version) for version in range(20, 40)][-1]
        await until(lambda: gone(outbox))
        assert (await outbox.trimmed())[0] == last
        assert await stores.servers.segments.sealed() == last
        page = await stores.servers.log.tail()
        assert page.place == (last, 0)
        assert [one.version for one in await stores.events.read_stream("s/a")] == list(range(1, 41))

        await until(lambda: told(last))
        assert metric(names.RELAY_WORKS) == 1
        assert metric(names.RELAY_SEALED) == last
        health = await asyncio.to_thread(get, f"http://127.0.0.1:{second.metrics_port}/healthz")
        assert health["status"] == "SERVING"


async def gone(outbox: Any) -> bool:
    return await outbox.count() == 0


async def told(revision: int) -> bool:
    return metric(names.RELAY_PUBLISHED) == revision and metric(names.RELAY_OUTBOX) == 0


def get(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def test_an_embedded_deployment_needs_none(settings: RelaySettings) -> None:
    with pytest.raises(SettingsError, match=r"DISTROML_ETCD_ENDPOINTS.*ttl_s|ttl_s.*DISTROML_ETCD_ENDPOINTS"):
        RelaySettings(service="relay", data=settings.data, token="t", deployment="d", ttl_s=0)
