"""Lines on their way to Elasticsearch: bounded, sent again until they are there, dropped when full, counted.

They come in blocks, and the oldest blocks go when there is no room. Every line that is added ends in exactly one of the
counts `shipped`, `full` and `refused`, or waits. A line that was sent twice is there once: its id is its place.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from elasticsearch import ApiError, AsyncElasticsearch

from distroml.logstore.blocks import Block
from distroml.logstore.elastic.client import advice, check_server, speaking
from distroml.logstore.elastic.document import encode
from distroml.logstore.elastic.template import ensure_template, stream_of
from distroml.logstore.port import LogStoreDown, LogStoreRefused
from distroml.observability import logger

log = logger(__name__)

SHIPPED: Final = "shipped"
FULL: Final = "full"
REFUSED: Final = "refused"

_OVERHEAD_BYTES: Final = 256
"""What a block costs in memory besides its lines."""
BATCH_BYTES: Final = 1 << 20
BATCH_LINES: Final = 10_000
_GATHER_S: Final = 0.5
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 10.0
# The whole request is too large, or one line spoils it.
_DIVIDE: Final = frozenset({400, 413})
# The server will take it later: queues are full, the data stream's template is missing; or, from a status on, it has
# trouble of its own, for which no line is to blame: a shard has no place yet, a disk is full.
_LATER: Final = frozenset({404, 429})
_ITS_OWN: Final = 500
_THERE: Final = frozenset({200, 201, 409})

Count = Callable[[str, int], None]
"""Told how many lines met which end."""
Tell = Callable[[str | None], None]
"""Told why nothing arrives, and None when lines arrive again."""


def _size(block: Block) -> int:
    return len(block.data) + _OVERHEAD_BYTES


def _is_for_later(item: Mapping[str, Any]) -> bool:
    return item["status"] in _LATER or item["status"] >= _ITS_OWN


class Shipper:
    """Sends lines to the data stream of one deployment. Adding never waits."""

    def __init__(
        self, client: AsyncElasticsearch, namespace: str, *, host: str, max_bytes: int, count: Count, tell: Tell
    ) -> None:
        self._client, self._stream, self._host = client, stream_of(namespace), host
        self._max_bytes, self._count, self._tell = max_bytes, count, tell
        self._waiting: deque[Block] = deque()
        self._waiting_bytes = 0
        self._sending: Sequence[bytes] = ()
        self._ready = False
        self._why: str | None = ""
        self._held_by = ""

    def add(self, block: Block) -> None:
        """Take some lines; where there is no room the oldest go."""
        self._waiting.append(block)
        self._waiting_bytes += _size(block)
        gone = 0
        while self._waiting_bytes > self._max_bytes:
            old = self._waiting.popleft()
            self._waiting_bytes -= _size(old)
            gone += old.count
        if gone:
            self._count(FULL, gone)

    async def run(self) -> None:
        """Send until cancelled."""
        wait_s = _FIRST_WAIT_S
        while True:
            if not self._sending and not self._waiting:
                await asyncio.sleep(_GATHER_S)
                continue
            try:
                await self._send()
            except LogStoreDown as error:
                self._say(str(error))
                # Agents of many nodes must not come back at the same moment.
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            else:
                self._say(None)
                wait_s = _FIRST_WAIT_S
                if self._waiting_bytes < BATCH_BYTES:
                    await asyncio.sleep(_GATHER_S)

    async def flush(self, timeout_s: float) -> bool:
        """Wait until nothing waits; False when that took too long. `run` must run."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._sending or self._waiting:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True

    def _say(self, why: str | None) -> None:
        if why == self._why:
            return
        if why is not None:
            log.warning("lines do not reach Elasticsearch; they wait, then the oldest are dropped", error=why)
        elif self._why:
            log.info("lines reach Elasticsearch again")
        self._why = why
        self._tell(why)

    async def _send(self) -> None:
        if not self._ready:
            await check_server(self._client)
            await ensure_template(self._client)
            self._ready = True
        if not self._sending:
            self._sending = self._take()
        self._sending = await self._bulk(self._sending)
        if self._sending:
            # The template may be gone, with all that the server had.
            self._ready = False
            raise LogStoreDown(f"Elasticsearch did not take {len(self._sending)} lines yet{self._held_by}")

    def _take(self) -> list[bytes]:
        """The documents of the next lines."""
        batch: list[bytes] = []
        size = 0
        while self._waiting and len(batch) < BATCH_LINES and size < BATCH_BYTES:
            block = self._waiting.popleft()
            size += _size(block)
            batch += encode(block, self._host)
        self._waiting_bytes -= size
        return batch

    async def _bulk(self, batch: Sequence[bytes]) -> Sequence[bytes]:
        """Send a batch of documents; what is to be sent again. Raises as `speaking`."""
        # In one piece: the client looks at each piece by itself.
        operations: Any = b"".join(batch)
        try:
            async with speaking():
                answer = await self._client.bulk(
                    index=self._stream,
                    operations=operations,
                    require_data_stream=True,
                    filter_path=["errors", "items.*.status", "items.*.error.type", "items.*.error.reason"],
                )
        except LogStoreRefused as error:
            cause = error.__cause__
            if isinstance(cause, ApiError) and cause.status_code in _DIVIDE:
                return await self._halves(batch, str(error))
            raise
        match answer.body:
            case {"errors": False}:
                self._count(SHIPPED, len(batch))
                return []
            case {"errors": True, "items": [*items]} if len(items) == len(batch):
                return self._settle(batch, [item["create"] for item in items])
            case other:
                raise LogStoreRefused(f"what answers does not say what became of the lines: {str(other)[:120]!r}")

    async def _halves(self, batch: Sequence[bytes], why: str) -> Sequence[bytes]:
        """The server, or a proxy before it, does not take the request as a whole."""
        if len(batch) == 1:
            self._refuse(1, why)
            return []
        middle = len(batch) // 2
        again = await self._bulk(batch[:middle])
        try:
            return [*again, *await self._bulk(batch[middle:])]
        except LogStoreDown as error:
            # What became of the first half is counted, and is not to be sent and counted again.
            self._held_by = f": {error}"
            return [*again, *batch[middle:]]

    def _settle(self, batch: Sequence[bytes], items: Sequence[dict[str, Any]]) -> list[bytes]:
        again = [document for document, item in zip(batch, items, strict=True) if _is_for_later(item)]
        there = sum(item["status"] in _THERE for item in items)
        refused = [item for item in items if item["status"] not in _THERE and not _is_for_later(item)]
        if again:
            later = next(item for item in items if _is_for_later(item))
            reason = str(later.get("error", {}).get("reason", later["status"]))[:300]
            self._held_by = f": {reason}{advice(reason)}"
        if there:
            self._count(SHIPPED, there)
        if refused:
            self._refuse(len(refused), str(refused[0].get("error")))
        return again

    def _refuse(self, lines: int, why: str) -> None:
        self._count(REFUSED, lines)
        log.warning("Elasticsearch takes some lines never", lines=lines, error=why[:500])
