"""Fan-out inside the process: who watches hears that something changed, or gets the samples themselves."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

SAMPLES, LOGS, EVENTS, RESOURCES = "samples", "logs", "events", "resources"
ALL_JOBS = ""
"""Watch this for changes of any job."""


class Watch:
    """Waits for changes; however many happen meanwhile, it wakes once and says of which kinds."""

    def __init__(self, owner: Changes, job: str) -> None:
        self._owner, self._job = owner, job
        self._kinds: set[str] = set()
        self._wake = asyncio.Event()

    def touch(self, kinds: Iterable[str]) -> None:
        """Something changed."""
        self._kinds.update(kinds)
        self._wake.set()

    async def wait(self) -> frozenset[str]:
        """The kinds that changed since the last call, waiting for the first."""
        await self._wake.wait()
        self._wake.clear()
        kinds = frozenset(self._kinds)
        self._kinds.clear()
        return kinds

    def __enter__(self) -> Self:
        self._owner.add(self._job, self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._owner.remove(self._job, self)


class Changes:
    """Who watches which job."""

    def __init__(self) -> None:
        self._watches: dict[str, set[Watch]] = {}

    def watch(self, job: str = ALL_JOBS) -> Watch:
        """A watch, live while it is entered."""
        return Watch(self, job)

    def add(self, job: str, watch: Watch) -> None:
        """Called by `Watch`."""
        self._watches.setdefault(job, set()).add(watch)

    def remove(self, job: str, watch: Watch) -> None:
        """Called by `Watch`."""
        watches = self._watches.get(job, set())
        watches.discard(watch)
        if not watches:
            self._watches.pop(job, None)

    @property
    def watched(self) -> bool:
        """Whether anybody looks at all."""
        return bool(self._watches)

    def publish(self, job: str, *kinds: str) -> None:
        """`job` changed; where it is empty, something that concerns everybody."""
        for name in (job, ALL_JOBS) if job else tuple(self._watches):
            for watch in self._watches.get(name, ()):
                watch.touch(kinds)


class Feed(Generic[T]):
    """A bounded queue to one reader: full, it forgets its oldest items and counts them."""

    def __init__(self, limit: int) -> None:
        self._items: deque[T] = deque()
        self._limit = limit
        self._wake = asyncio.Event()
        self.dropped = 0

    def put(self, item: T) -> None:
        """Never waits."""
        if len(self._items) >= self._limit:
            self._items.popleft()
            self.dropped += 1
        self._items.append(item)
        self._wake.set()

    async def get(self) -> T:
        """The oldest item, waiting for one."""
        while not self._items:
            self._wake.clear()
            await self._wake.wait()
        return self._items.popleft()


class Feeds(Generic[T]):
    """Feeds by job."""

    def __init__(self, limit: int = 256, per_job: int = 64) -> None:
        self._limit, self._per_job = limit, per_job
        self._feeds: dict[str, set[Feed[T]]] = {}

    def open(self, job: str) -> Feed[T] | None:
        """A new feed of the job, or None where it has as many readers as it may."""
        feeds = self._feeds.setdefault(job, set())
        if len(feeds) >= self._per_job:
            return None
        feed = Feed[T](self._limit)
        feeds.add(feed)
        return feed

    def close(self, job: str, feed: Feed[T]) -> None:
        """The reader went."""
        feeds = self._feeds.get(job, set())
        feeds.discard(feed)
        if not feeds:
            self._feeds.pop(job, None)

    def watched(self, job: str) -> bool:
        """Whether the job has a reader."""
        return job in self._feeds

    def put(self, job: str, item: T) -> None:
        """To every reader of the job."""
        for feed in self._feeds.get(job, ()):
            feed.put(item)
