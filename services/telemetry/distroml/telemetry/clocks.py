"""The clocks of the servers that only telemetry has, PostgreSQL's and Elasticsearch's, for health and the metric."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from distroml.logstore import LogStoreDown
from distroml.rpc.clockreading import Now, Reading, read
from distroml.rpc.clocks import troubles
from distroml.rpc.postgres import PostgresUnfit, survey
from distroml.rpc.stores import CLOCKS_S

if TYPE_CHECKING:
    from elasticsearch import AsyncElasticsearch

PART: Final = "clocks of history and log store"
"""Its name in the service's health."""
POSTGRES: Final = "PostgreSQL"
ELASTICSEARCH: Final = "Elasticsearch"

Ask = Callable[[], Awaitable[Reading | None]]
"""Reads a server's clock; None where the server does not say it, which others tell."""


def of_postgres(address: str, now: Now = time.time) -> Ask:
    """That of the server at an address."""

    async def ask() -> Reading | None:
        try:
            return (await asyncio.to_thread(partial(survey, address, now))).clock
        except PostgresUnfit:
            return None

    return ask


def of_elasticsearch(client: AsyncElasticsearch, now: Now = time.time) -> Ask:
    """That of the node that answers."""
    from distroml.logstore.elastic import clock_s

    async def ask() -> Reading | None:
        before_s = now()
        try:
            return read(await clock_s(client), before_s, now(), step_s=1.0)
        except LogStoreDown:
            return None

    return ask


async def watch(asks: Mapping[str, Ask], report: Callable[[str | None], None], *, every_s: float = CLOCKS_S) -> None:
    """Look at them for ever, by whose they are; returns at once where there are none."""
    while asks:
        readings = await asyncio.gather(*(ask() for ask in asks.values()))
        report(troubles((whose.lower(), whose, one) for whose, one in zip(asks, readings, strict=True)))
        await asyncio.sleep(every_s)
