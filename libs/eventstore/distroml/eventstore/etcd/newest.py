"""The newest commits of an outbox, held in memory without a gap, as one watch tells of them.

etcd finds keys by name, and has to look at the whole outbox to list what came after a revision. A watch costs it only
what is new, and one serves everybody in the process who follows the outbox.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final

from distroml.eventstore.port import StoreDamaged
from distroml.eventstore.relay.core import size_of
from distroml.eventstore.relay.port import OutboxEntry
from distroml.statestore.etcd import EtcdClient, ops
from distroml.statestore.etcd.messages import KeyValue
from distroml.statestore.etcd.watch import watch
from distroml.statestore.port import Compacted, StateStoreError
from distroml.statestore.wake import Wake

log = logging.getLogger(__name__)

MOST_COMMITS: Final = 4096
MOST_BYTES: Final = 8 * 1024 * 1024
_PAUSE_S: Final = 1.0


class NewestCommits:
    """Every commit after one revision, up to another one; bounded, so that the oldest leave it as new ones come.

    Attributes:
        on_news: called after commits came, and when they are watched no longer.
    """

    def __init__(
        self,
        client: EtcdClient,
        prefix: bytes,
        decode: Callable[[KeyValue], OutboxEntry],
        *,
        most_commits: int = MOST_COMMITS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Nothing is watched before `join`.

        Args:
            client: etcd.
            prefix: of the outbox's keys.
            decode: reads one of them; raises `StoreDamaged`.
            most_commits: past that, or `most_bytes`, the older half leaves.
            most_bytes: see `most_commits`.
        """
        self.on_news: Callable[[], None] = lambda: None
        self._client, self._prefix, self._decode = client, prefix, decode
        self._most_commits, self._most_bytes = most_commits, most_bytes
        self._wake = Wake()
        self._following: asyncio.Task[None] | None = None
        self._held: list[OutboxEntry] = []
        self._bytes = 0
        self._start = self._through = 0

    @property
    def begun(self) -> bool:
        """Whether they are watched."""
        return self._following is not None

    @property
    def through(self) -> int:
        """Commits up to this revision are known; 0 where nothing is watched."""
        return self._through

    def covers(self, after: int) -> bool:
        """Whether it has every commit after a revision that the watch has told of."""
        return self._following is not None and self._start <= after

    def next(self, after: int, limit: int) -> Sequence[OutboxEntry]:
        """The next commits after a revision that is covered."""
        start = bisect_right(self._held, after, key=_revision)
        return self._held[start : start + limit]

    def join(self, after: int, entries: Sequence[OutboxEntry], through: int) -> None:
        """Begin, or reach further back, with what is known: `entries` are all commits in (after, through]."""
        if self._following is None:
            self._start, self._through, self._held = after, through, list(entries)
            self._following = asyncio.create_task(self._follow(through), name="outbox")
        elif after < self._start <= through:
            self._held[:0] = [entry for entry in entries if entry.revision <= self._start]
            self._start = after
        else:
            return
        self._bytes = sum(map(size_of, self._held))
        self._bound()

    async def reach(self, revision: int, timeout_s: float) -> bool:
        """Wait for the watch to have told of the commit at a revision; False where it did not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.past(revision - 1)
        except TimeoutError:
            return False
        return self._through >= revision

    async def past(self, after: int) -> None:
        """Return once it has a commit after a revision, or does not cover that (any more)."""
        while self.covers(after) and self._through <= after:
            await self._wake.past(self._wake.count)

    def forget(self) -> None:
        """Hold nothing, and watch no longer, until the next `join`."""
        following, self._following = self._following, None
        self._held, self._bytes, self._start, self._through = [], 0, 0, 0
        if following is not None and following is not asyncio.current_task():
            following.cancel()
        self._tell()

    async def close(self) -> None:
        """End the watch."""
        following = self._following
        self.forget()
        if following is not None:
            await asyncio.gather(following, return_exceptions=True)

    async def _follow(self, after: int) -> None:
        try:
            async for batch in watch(self._client, self._prefix, ops.end_of(self._prefix), after=after, puts_only=True):
                for event in batch:
                    assert event.kv is not None, "etcd names the key of every event"
                    entry = self._decode(event.kv)
                    self._held.append(entry)
                    self._bytes += size_of(entry)
                    self._through = entry.revision
                self._bound()
                self._tell()
        except Compacted:
            pass  # who reads next lists what there is, and all begins anew from there
        except (StateStoreError, StoreDamaged) as error:
            log.warning("the outbox cannot be followed: %s", error)
            await asyncio.sleep(_PAUSE_S)
        finally:
            # However it ended: nobody shall wait for a watch that is over.
            if self._following is asyncio.current_task():
                self.forget()

    def _bound(self) -> None:
        if len(self._held) <= self._most_commits and self._bytes <= self._most_bytes:
            return
        # Half of it at once: letting go of one by one would move all the others each time.
        gone = 0
        while len(self._held) - gone > self._most_commits // 2 or self._bytes > self._most_bytes // 2:
            self._bytes -= size_of(self._held[gone])
            gone += 1
        self._start = self._held[gone - 1].revision
        del self._held[:gone]

    def _tell(self) -> None:
        self._wake.notify()
        self.on_news()


def _revision(entry: OutboxEntry) -> int:
    return entry.revision
