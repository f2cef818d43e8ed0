"""Finished streams leave the live state, some at a time, while their owner has the lease of a role.

Retiring changes nothing of what a stream means (`EventStore.retire`): what goes wrong here costs room and nothing
else, and whatever cannot be retired now is found again. So nothing is kept about it but in memory, and a deployment
that is older than this is tidied as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from distroml.events import UnknownEvent
from distroml.eventstore import (
    EventStore,
    EventStoreError,
    Fenced,
    Guard,
    NotSealable,
    StoreDown,
    StoreFull,
    WrongExpectedVersion,
)
from distroml.observability import logger, names
from distroml.observability.metrics import counter, gauge

log = logger(__name__)

MAX_LOOKS: Final = 200
"""Streams looked at in one round; the rest has its turn in the next."""
PAUSE_S: Final = 1.0
"""Between rounds while there is more to look at."""
MAX_ROUND_S: Final = 60.0
"""Between rounds otherwise, at most."""
_PAGE: Final = 1000

IN_USE, WAITING, OVERDUE = "in_use", "waiting", "overdue"

_LIVE = gauge(
    names.EVENTSTORE_LIVE_STREAMS,
    "Streams of jobs in the live state: `in_use`, `waiting` for a while after the job's end, `overdue` if they could "
    "not be retired in time.",
    (names.LABEL_STATE,),
)
_RETIRED = counter(names.EVENTSTORE_RETIRED, "Streams of finished jobs that left the live state.")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a live stream found.

    Attributes:
        version: at which it was looked at.
        due_ms: from when on it may be retired, Unix milliseconds (0: at once); None where it is not finished.
        keys: further keys that belong to it alone and go with it.
    """

    version: int
    due_ms: int | None
    keys: tuple[str, ...] = ()


Look = Callable[[str], Awaitable[Seen]]


class Retirement:
    """Retires the streams of one owner below a prefix.

    Args:
        store: of the streams.
        prefix: of their names.
        look: tells of one stream, by its name, whether it is finished.
        after_s: how long a stream stays after its end; one that is in use now cannot be due earlier.
        follows: prefix of streams with the same ids, which retire first: while one of them is live, and where there
            never was one, the stream of this id stays. So one owner decides for several, and the others ask neither
            it nor the log.
        retired: is told the name of each stream that was.
    """

    def __init__(
        self,
        store: EventStore,
        prefix: str,
        look: Look,
        *,
        after_s: int,
        follows: str = "",
        retired: Callable[[str], None] = lambda stream: None,
    ) -> None:
        self._store, self._prefix, self._look, self._after_s, self._retired = store, prefix, look, after_s, retired
        self._follows = follows
        self._round_s = min(MAX_ROUND_S, max(PAUSE_S, after_s / 4))
        self._known: dict[str, tuple[float, str]] = {}

    @contextlib.asynccontextmanager
    async def beside(self, guard: Guard) -> AsyncGenerator[None]:
        """Retire for as long as the block lasts, which nothing that happens here disturbs."""
        task = asyncio.create_task(self.run(guard), name=f"retire {self._prefix}")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def run(self, guard: Guard) -> None:
        """Until cancelled, or until another replica has the lease."""
        self._known.clear()
        is_patient = False
        try:
            while True:
                more = False
                try:
                    more = await self.once(guard)
                    is_patient = False
                except Fenced:
                    log.info("another replica retires streams", prefix=self._prefix)
                    return
                except (StoreDown, StoreFull) as error:
                    if not is_patient:
                        log.warning(
                            "finished streams stay until the stores answer", prefix=self._prefix, why=str(error)
                        )
                    is_patient = True
                except Exception:
                    log.exception("retiring streams failed; trying again", prefix=self._prefix)
                await asyncio.sleep(PAUSE_S if more else self._round_s)
        finally:
            _LIVE.clear()

    async def once(self, guard: Guard) -> bool:
        """One round over the live streams whose time it is; whether some of them are left for the next.

        Raises:
            Fenced, StoreDown, StoreFull: the round ended early.
        """
        live = await self._names(self._prefix)
        # In this order: a stream is begun after the one that it follows.
        first = {name.removeprefix(self._follows) for name in await self._names(self._follows)} if self._follows else ()
        free = [name for name in live if name.removeprefix(self._prefix) not in first]
        self._known = {name: self._known[name] for name in free if name in self._known}
        now = time.monotonic()
        due = [name for name in free if name not in self._known or self._known[name][0] <= now]
        count = 0
        try:
            for name in due[:MAX_LOOKS]:
                count += await self._one(name, guard)
        finally:
            if count:
                log.info("streams retired", prefix=self._prefix, count=count, live=len(live) - count)
            states = Counter(state for _, state in self._known.values())
            states[IN_USE] += len(live) - count - len(self._known)
            for state in (IN_USE, WAITING, OVERDUE):
                _LIVE.labels(state).set(states[state])
        return len(due) > MAX_LOOKS

    async def _one(self, name: str, guard: Guard) -> bool:
        """Whether the stream was retired."""
        seen = None
        try:
            seen = await self._look(name)
            if seen.due_ms is None or not await self._comes_last(name):
                self._later(name, self._after_s, IN_USE)
                return False
            if (left_s := seen.due_ms / 1000 - time.time()) > 0:
                self._later(name, left_s, WAITING)
                return False
            await self._store.retire(name, version=seen.version, keys=seen.keys, guards=(guard,))
        except (Fenced, StoreDown, StoreFull):
            if seen is not None:
                self._later(name, 0, OVERDUE)
            raise
        except NotSealable as early:
            log.debug("a finished stream waits for the relay", stream=name, why=str(early))
            self._later(name, self._round_s, OVERDUE)
            return False
        except WrongExpectedVersion as moved:
            log.info("a finished stream lives again", stream=name, why=str(moved))
            self._later(name, self._round_s, IN_USE)
            return False
        except (EventStoreError, UnknownEvent, ValueError) as error:
            log.error("a finished stream cannot be retired; it stays as it is", stream=name, why=str(error))
            self._later(name, self._after_s, OVERDUE)
            return False
        self._known.pop(name, None)
        self._retired(name)
        _RETIRED.inc()
        return True

    def _later(self, name: str, in_s: float, state: str) -> None:
        self._known[name] = time.monotonic() + in_s, state

    async def _comes_last(self, name: str) -> bool:
        """Whether the stream that it follows existed; that it is not live any more is known."""
        return not self._follows or await self._store.version(self._follows + name.removeprefix(self._prefix)) > 0

    async def _names(self, prefix: str) -> list[str]:
        found: list[str] = []
        while page := await self._store.streams(prefix, after=found[-1] if found else "", limit=_PAGE):
            found += page
            if len(page) < _PAGE:
                break
        return found
