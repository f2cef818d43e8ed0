"""Waking coroutines of any event loop from any thread."""

from __future__ import annotations

import asyncio
import threading


class Wake:
    """A counter that coroutines can wait on; no wake-up is lost between reading the count and waiting.

    Use: `seen = wake.count`, look for work, and where there is none `await wake.past(seen)`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    @property
    def count(self) -> int:
        """How often `notify` was called."""
        return self._count

    def notify(self) -> None:
        """Wake everyone who waits; callable from any thread."""
        with self._lock:
            self._count += 1
            waiting, self._waiting = self._waiting, {}
        for future, loop in waiting.items():
            try:
                loop.call_soon_threadsafe(_finish, future)
            except RuntimeError:  # that loop was closed under its waiter
                continue

    async def past(self, count: int) -> None:
        """Return once the count has moved past `count`."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._count != count:
                return
            future = loop.create_future()
            self._waiting[future] = loop
        try:
            await future
        finally:
            with self._lock:
                self._waiting.pop(future, None)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
