"""Lines on their way to Elasticsearch: bounded, sent again until they are there, dropped when full, counted.

They come in blocks, and the oldest blocks go when there is no room. Every line that is added ends in exactly one of the
counts `shipped`, `full` and `refused`, or waits. A line that was sent twice is there once: its id is its place.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from elasticsearch import AsyncElasticsearch

from distroml.logstore.blocks import Block
from distroml.logstore.elastic.bulk import REFUSED, SHIPPED, Bulk, Count, Documents, lines_of, one_by_one
from distroml.logstore.elastic.client import check_server
from distroml.logstore.elastic.document import encode
from distroml.logstore.elastic.template import ensure_template, stream_of
from distroml.logstore.port import LogStoreDown
from distroml.observability import logger

__all__ = ["FULL", "REFUSED", "SHIPPED", "Count", "Shipper"]

log = logger(__name__)

FULL: Final = "full"

_OVERHEAD_BYTES: Final = 256
"""What a block costs in memory besides its lines."""
BATCH_BYTES: Final = 1 << 20
BATCH_LINES: Final = 10_000
_GATHER_S: Final = 0.5
_FIRST_WAIT_S: Final = 0.2
_LONGEST_WAIT_S: Final = 10.0
_STUMBLES: Final = 5
"""After so many tries in vain it is asked whether lines are to blame: some seconds of a server's own trouble."""

Tell = Callable[[str | None], None]
"""Told why nothing arrives, and None when lines arrive again."""


def _nobody(outcome: str, lines: int) -> None:
    del outcome, lines


def _size(block: Block) -> int:
    return len(block.data) + _OVERHEAD_BYTES


class Shipper:
    """Sends lines to the data stream of one deployment. Adding never waits."""

    def __init__(
        self,
        client: AsyncElasticsearch,
        namespace: str,
        *,
        host: str,
        max_bytes: int,
        count: Count | None = None,
        tell: Tell,
    ) -> None:
        """Nothing is sent before `run`.

        Args:
            client: of the server, or of several.
            namespace: of the deployment's data stream.
            host: this machine's name.
            max_bytes: of lines that wait.
            count: told what became of lines, where `add` names nobody else.
            tell: told what keeps lines from arriving.
        """
        self._client, self._bulk, self._host = client, Bulk(client, stream_of(namespace)), host
        self._max_bytes, self._count, self._tell = max_bytes, count or _nobody, tell
        self._waiting: deque[tuple[Block, Count]] = deque()
        self._waiting_bytes = 0
        self._sending: Sequence[Documents] = ()
        self._stumbled = 0
        self._ready = False
        self._why: str | None = ""

    def add(self, block: Block, count: Count | None = None) -> None:
        """Take some lines; where there is no room the oldest go.

        Args:
            block: the lines.
            count: told what became of these, in place of who is told of all others.
        """
        self._waiting.append((block, count or self._count))
        self._waiting_bytes += _size(block)
        while self._waiting_bytes > self._max_bytes:
            old, told = self._waiting.popleft()
            self._waiting_bytes -= _size(old)
            told(FULL, old.count)

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
            self._sending, self._stumbled = self._take(), 0
        try:
            if self._stumbled < _STUMBLES:
                self._sending = await self._bulk.send(self._sending)
            else:
                suspects = one_by_one(self._sending)
                self._sending = batch = [*suspects, *self._others()]
                self._sending = await self._bulk.sift(batch, suspects)
                # As many tries once more if that was in vain; where others were taken, or there are none, the next ones
                # need not wait for them.
                self._stumbled = 0 if len(self._sending) == len(batch) > 1 else _STUMBLES
        finally:
            self._stumbled += self._bulk.stumbled
        if self._sending:
            # The template may be gone, with all that the server had.
            self._ready = False
            raise LogStoreDown(f"Elasticsearch did not take {lines_of(self._sending)} lines yet{self._bulk.held_by}")

    def _others(self) -> list[Documents]:
        """The next lines, by which it shows whether others are taken than those that are sent again and again."""
        if sum(len(some.data) for some in self._sending) >= BATCH_BYTES:
            # As much as one request should hold, and enough lines to compare.
            return []
        return one_by_one(self._take())

    def _take(self) -> list[Documents]:
        """The documents of the next lines."""
        batch: list[Documents] = []
        size = lines = 0
        while self._waiting and lines < BATCH_LINES and size < BATCH_BYTES:
            block, told = self._waiting.popleft()
            size += _size(block)
            lines += block.count
            batch.append(Documents(encode(block, self._host), block.count, told))
        self._waiting_bytes -= size
        return batch
