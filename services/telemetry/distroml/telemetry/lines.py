"""Searching lines: the store that the settings name, what it is called, and what its server needs done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from distroml.events import fresh_id
from distroml.logstore import LogSearch, LogStoreError, LogStoreRefused, Page, Query
from distroml.logstore.settings import ElasticSettings
from distroml.rpc import Service
from distroml.rpc.clockreading import Now
from distroml.telemetry.adapters.logsearch import EmbeddedLogSearch
from distroml.telemetry.clocks import Ask, of_elasticsearch
from distroml.telemetry.readmodel import ReadModel

EMBEDDED: Final = "embedded"
ELASTICSEARCH: Final = "elasticsearch"
PART: Final = "log store"
"""Its name in the service's health."""

UPKEEP_S: Final = 300.0
SEARCH_TIMEOUT_S: Final = 15.0
_AGAIN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Lines:
    """Where lines are searched."""

    search: LogSearch
    store: str = EMBEDDED
    clock: Ask | None = None
    """Of the server, where there is one."""


def open_lines(
    service: Service, model: ReadModel, store: ElasticSettings | None, *, retention_s: int, now: Now = time.time
) -> Lines:
    """The store of the settings. That of a server is closed with the service, which looks after it meanwhile.

    Its clock is compared with `now`, this machine's.
    """
    if store is None:
        return Lines(EmbeddedLogSearch(model))
    # The client comes with the extra `stack` and takes a while to import: only where it is used.
    from distroml.logstore.elastic import ElasticLogSearch, Upkeep, check_server, connect

    client = connect(store, timeout_s=SEARCH_TIMEOUT_S)
    service.on_close(client.close)
    report = partial(service.report, PART)
    amiss = asyncio.Event()
    upkeep = Upkeep(client, store.namespace, retention_s=retention_s, holder=fresh_id("telemetry"))

    async def round_(now_ms: int) -> object:
        try:
            return await upkeep.round(now_ms)
        except LogStoreRefused:
            # A server of another version says of a request only that it does not know it.
            await check_server(client)
            raise

    async def keep() -> None:
        await keep_up(round_, report, amiss)

    service.background("log retention", keep)
    search = _Reporting(ElasticLogSearch(client, store.namespace), report, amiss)
    return Lines(search, ELASTICSEARCH, of_elasticsearch(client, now))


async def keep_up(
    round_: Callable[[int], Awaitable[object]],
    report: Callable[[str | None], None],
    amiss: asyncio.Event,
    *,
    every_s: float = UPKEEP_S,
    again_s: float = _AGAIN_S,
) -> None:
    """A round of upkeep now and then, for ever; health says it where the server does not let itself be looked after.

    Soon again, too, once `amiss` is set by who met trouble between two rounds: nobody else says that it is over.
    """
    while True:
        amiss.clear()
        try:
            await round_(time.time_ns() // 1_000_000)
        except LogStoreError as error:
            report(str(error))
            await asyncio.sleep(again_s)
        else:
            report(None)
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await amiss.wait()
                    await asyncio.sleep(again_s)


class _Reporting:
    """`LogSearch` whose trouble shows in the service's health."""

    def __init__(self, search: LogSearch, report: Callable[[str | None], None], amiss: asyncio.Event) -> None:
        self._search, self._report, self._amiss = search, report, amiss

    async def search(self, query: Query) -> Page:
        """See `LogSearch`."""
        try:
            page = await self._search.search(query)
        except LogStoreError as error:
            self._report(str(error))
            self._amiss.set()
            raise
        self._report(None)
        return page
