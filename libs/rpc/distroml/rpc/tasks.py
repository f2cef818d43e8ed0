"""Background tasks that are started again when they crash."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, cast

from distroml.observability import logger, names
from distroml.observability.metrics import counter, gauge

log = logger(__name__)

STABLE_S: Final = 1.0
"""A restarted task counts as healthy again after it has run for this long, seconds."""

_RESTARTS = counter(names.TASK_RESTARTS, "Background tasks started again after a crash.", (names.LABEL_TASK,))
_UP = gauge(names.TASK_UP, "Whether a background task runs (1) or has crashed and waits (0).", (names.LABEL_TASK,))

Work = Callable[[], Coroutine[Any, Any, None]]
Report = Callable[[str, str | None], None]
"""Told a task's name, and why it is not healthy (None: it is)."""


class Backoff:
    """Waits that double from `initial_s` to `max_s`, spread by half so that many clients do not come at once."""

    def __init__(self, initial_s: float = 0.1, max_s: float = 10.0) -> None:
        self._initial_s, self._max_s = initial_s, max_s
        self._next_s = initial_s

    def reset(self) -> None:
        """It works again: begin with the shortest wait next time."""
        self._next_s = self._initial_s

    def step(self) -> float:
        """How long to wait now, seconds; longer at each call."""
        wait_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._max_s, self._next_s * 2)
        return wait_s

    async def wait(self) -> None:
        """Sleep for `step()`."""
        await asyncio.sleep(self.step())


async def supervise(name: str, work: Work, report: Report, backoff: Backoff) -> None:
    """Run `work` until it returns or this task is cancelled; start it again, after a wait, when it raises."""
    loop = asyncio.get_running_loop()
    first = True
    while True:
        stable: asyncio.TimerHandle | None = None
        started = loop.time()
        try:
            if first:
                _healthy(name, report)
            else:
                stable = loop.call_later(STABLE_S, _healthy, name, report)
            await _to_its_end(name, work)
            _healthy(name, report)
            return
        except Exception as error:
            why = "; ".join(f"{type(one).__name__}: {one}" for one in _leaves(error))
            log.exception("a background task crashed; it is started again", task=name)
            report(name, why)
            _UP.labels(name).set(0)
            _RESTARTS.labels(name).inc()
        finally:
            if stable is not None:
                stable.cancel()
        if loop.time() - started > 30.0:
            backoff.reset()
        await backoff.wait()
        first = False


async def _to_its_end(name: str, work: Work) -> None:
    """Run `work` once. Whoever is cancelled meanwhile ends, whatever the work comes to as it ends."""
    # In a task of its own: in ours a `TaskGroup` that failed counts as a cancellation, too, before Python 3.13.
    task = asyncio.create_task(work(), name=name)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            # Such as that a lease cannot be given back, for etcd is away.
            log.warning("a background task failed as it ended", task=name, error=f"{type(error).__name__}: {error}")
        raise
    task.result()


def _leaves(error: Exception) -> Iterator[Exception]:
    """What went wrong: a group of tasks says only that something did."""
    if isinstance(error, ExceptionGroup):
        for one in cast("ExceptionGroup[Exception]", error).exceptions:
            yield from _leaves(one)
    else:
        yield error


def _healthy(name: str, report: Report) -> None:
    _UP.labels(name).set(1)
    report(name, None)
