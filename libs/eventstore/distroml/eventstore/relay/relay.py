"""The relay: publishes every commit to the log in order, seals it into segments, and only then trims the outbox.

It may be killed anywhere, and two may run at once: what it knows it reads again from the log's end and from the
segments. A replaced relay's publishes are refused by the log; its segments and its trimming say nothing untrue. So
the lease under which it runs saves work, and the log does not depend on it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from distroml.eventstore.port import EventStoreError, StoreDamaged
from distroml.eventstore.relay import core
from distroml.eventstore.relay.core import Collected, Feed, SealPolicy
from distroml.eventstore.relay.port import Log, LogMoved, Outbox, OutboxEntry, OutboxTrimmed
from distroml.eventstore.segments import SegmentLog
from distroml.statestore.failpoint import hit

_BATCH_COMMITS: Final = 256
_BATCH_EVENTS: Final = 512
_LOOK_S: Final = 1.0
_GATHER_S: Final = 0.2
"""Commits for a segment that is not due are asked for at most so often: whoever waits for it waits much longer."""

_BACK_OFF_S: Final = (0.1, 0.3, 1.0, 2.0)


class Relay:
    """From one outbox to one log and its segments.

    Attributes:
        published: every commit up to this revision is in the log.
        sealed: every commit up to this revision is in segments.
        trouble: what publishing, sealing and trimming last failed with, for health; empty while they go on.
    """

    def __init__(
        self,
        outbox: Outbox,
        log: Log,
        segments: SegmentLog,
        *,
        reload_bytes: int,
        policy: SealPolicy | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is begun yet.

        Args:
            outbox: what to empty.
            log: what to fill.
            segments: where to seal.
            reload_bytes: how much of the sealed log at most is put into an empty log first.
            policy: when to seal.
            monotonic: the clock.
        """
        self._outbox, self._log, self._segments = outbox, log, segments
        self._reload_bytes, self._policy, self._monotonic = reload_bytes, policy or SealPolicy(), monotonic
        self.published = self.sealed = self._trimmed = 0
        self.trouble: dict[str, str] = {}
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Publish, seal and trim until cancelled; trouble is told in `trouble`, and tried again."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again("publishing", self._publish))
            tasks.create_task(self._again("sealing", self._seal))
            # By itself: letting go of a segment's commits takes many calls, and no publish shall wait for them.
            tasks.create_task(self._again("trimming", self._trim))

    async def _again(self, what: str, work: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        failures = 0

        def well() -> None:
            nonlocal failures
            failures = 0
            self.trouble.pop(what, None)
            _end_if_cancelled()

        while True:
            try:
                await work(well)
            except (EventStoreError, LogMoved, OutboxTrimmed) as error:
                self.trouble[what] = str(error)
                _end_if_cancelled()
                await asyncio.sleep(_BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)])
                failures += 1

    async def _publish(self, well: Callable[[], None]) -> None:
        """Fill the log from its end on, for as long as it is as we left it."""
        feed = await self._resumed()
        looked_s = self._monotonic()
        while True:
            entries = await self._next(feed.whole)
            done = core.batch(feed, entries, _BATCH_EVENTS)
            if done.events:
                hit("relay.publish")
                tail = await self._log.publish(feed.tail, feed.previous, done.events)
                hit("relay.publish")
                feed = core.fed(feed, done, tail)
            elif entries:
                feed = core.fed(feed, done, feed.tail)
            # A publish notices by itself; this is for the time when there is nothing to publish.
            if self._monotonic() >= looked_s + _LOOK_S:
                if await self._log.tail() != feed.tail:
                    raise LogMoved("the log was changed by another, or deleted")
                await self._check_trimmed()
                looked_s = self._monotonic()
            self.published = feed.whole
            self._moved.set()
            well()

    async def _resumed(self) -> Feed:
        tail = await self._log.tail()
        begins_after = 0 if tail.place is not None else await self._segments.newest(self._reload_bytes)
        return core.resume(tail, begins_after)

    async def _next(self, after: int) -> Sequence[OutboxEntry]:
        """The next commits, from the outbox, or from segments where they have left it; none after a while."""
        try:
            return await self._awaited(after, _LOOK_S)
        except OutboxTrimmed as trimmed:
            entries = await self._segments.read(after=after)
            if not entries:
                raise _unsealed(after, trimmed.trimmed) from trimmed
            return entries[:_BATCH_COMMITS]

    async def _awaited(self, after: int, timeout_s: float) -> Sequence[OutboxEntry]:
        """The next commits in the outbox, or none where none came in time; asked for only where they are not told."""
        outbox = self._outbox
        told = outbox.told(after=after, limit=_BATCH_COMMITS)
        found = told if told is not None else await outbox.pending(after=after, limit=_BATCH_COMMITS)
        if not found:
            await outbox.wait(after=after, timeout_s=timeout_s)
            found = outbox.told(after=after, limit=_BATCH_COMMITS)
        # Silence may be that of who tells.
        return found or await outbox.pending(after=after, limit=_BATCH_COMMITS)

    async def _seal(self, well: Callable[[], None]) -> None:
        """Collect what follows the sealed end, and seal it when it is due."""
        collected = Collected(await self._segments.sealed())
        while True:
            self.sealed = collected.after
            self._moved.set()
            due_s = core.due_in_s(collected, False, self._monotonic(), self._policy)
            try:
                entries = await self._awaited(collected.last, _LOOK_S if due_s is None else min(due_s, _LOOK_S))
            except OutboxTrimmed as trimmed:
                # Another relay has sealed further, or what it sealed is lost.
                if await self._segments.sealed() < trimmed.trimmed:
                    raise _unsealed(collected.last, trimmed.trimmed) from trimmed
                raise
            before = len(collected.entries)
            collected = core.collect(collected, entries, self._monotonic(), self._policy)
            more = len(collected.entries) - before < len(entries)
            due_s = core.due_in_s(collected, more, self._monotonic(), self._policy)
            if due_s == 0:
                hit("relay.seal")
                end = await self._segments.seal(collected.after, collected.entries)
                hit("relay.seal")
                collected = Collected(end)
            else:
                await asyncio.sleep(min(_GATHER_S, self._policy.age_s / 8))
            if collected.entries:
                # Collecting proves nothing: trouble that the last sealing had holds until one succeeds.
                _end_if_cancelled()
            else:
                well()

    async def _trim(self, well: Callable[[], None]) -> None:
        """Let go of what the log and the segments both hold, whenever one of them has come further."""
        while True:
            self._moved.clear()
            up_to = core.trimmable(self.published, self.sealed)
            if up_to > self._trimmed:
                if not self._trimmed:
                    await self._check_sealed(up_to)
                hit("relay.trim")
                await self._outbox.trim(up_to=up_to)
                hit("relay.trim")
                self._trimmed = up_to
            well()
            await self._moved.wait()

    async def _check_trimmed(self) -> None:
        """Raise `StoreDamaged` where the outbox does not know any more that it was trimmed."""
        if not self._trimmed:
            return
        try:
            await self._outbox.pending(after=self._trimmed - 1, limit=1)
        except OutboxTrimmed:
            return
        raise _brought_back(self._trimmed)

    async def _check_sealed(self, up_to: int) -> None:
        """Raise `StoreDamaged` where a commit in the outbox is another than the sealed one of its revision."""
        after = 0
        while after < up_to:
            try:
                entries = await self._outbox.pending(after=after, limit=_BATCH_COMMITS)
            except OutboxTrimmed as trimmed:
                after = trimmed.trimmed
                continue
            entries = [entry for entry in entries if entry.revision <= up_to]
            if not entries:
                return
            after = entries[-1].revision
            sealed: dict[int, OutboxEntry] = {}
            async for one in self._segments.commits(after=entries[0].revision - 1):
                if one.revision > after:
                    break
                sealed[one.revision] = one
            for entry in entries:
                if sealed.get(entry.revision) != entry:
                    raise _brought_back(entry.revision)


def _unsealed(after: int, trimmed: int) -> StoreDamaged:
    return StoreDamaged(
        f"commits after revision {after} have left the outbox (up to {trimmed}), and no segment holds them; bring the"
        " segments' objects back from a copy of the bucket"
    )


def _brought_back(revision: int) -> StoreDamaged:
    return StoreDamaged(
        f"the outbox is not the one that was relayed up to revision {revision}: the committed state was brought back"
        " from an older copy, and counts revisions again that the log and its segments have. Nothing is trimmed."
        " Bring the newer copy back, or give the deployment a new id, and with it a new log"
    )


def _end_if_cancelled() -> None:
    """Raise `CancelledError` where a cancellation was asked for and got lost.

    Before Python 3.12 `asyncio.wait_for`, which NATS's client waits with, loses one that comes with the answer.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
