"""The projection: public events of the log into history, at least once, from history's own cursor.

Of several replicas one projects, and the others look for what it changed. The lead is a row with an end; that a leader
which lost it without noticing does no harm is `History.apply`'s promise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from distroml.events import Position, Recorded, fresh_id
from distroml.eventstore import EventStore, EventStoreError, Subscription
from distroml.observability import logger
from distroml.rpc.publicevents import decode_public
from distroml.telemetry.domain.facts import MeteredFact
from distroml.telemetry.history.port import HistoryAway, NotWritten, Rebuilt
from distroml.telemetry.live import EVENTS, Changes
from distroml.telemetry.projecting import STREAMS, Decode, Reader, pages
from distroml.telemetry.readmodel import ReadModel

log = logger(__name__)

DURABLE = "telemetry.jobs"
BATCH = 500
RETRY_S = 1.0
LEAD_S = 10.0
_RENEW_S = 3.0
_LOOK_S = 1.0
_GATHER_S = 0.02
_AGAIN_S = 0.1


class Projector:
    """Keeps history at the head of the log.

    Attributes:
        caught_up: history has been at the head once; before that pages say that the log is being read.
        folded: events taken since the start.
        trouble: why the log cannot be read or history not written just now, or empty.
        leads: whether this replica is the one that projects.
    """

    def __init__(
        self,
        store: EventStore,
        model: ReadModel,
        *,
        decode: Decode = decode_public,
        on_fact: Callable[[str, MeteredFact], None] = lambda job, fact: None,
        on_skip: Callable[[], None] = lambda: None,
        on_history: Callable[[str | None], None] = lambda why: None,
        lead_s: float = LEAD_S,
    ) -> None:
        self._store, self._model, self._on_fact, self._on_history = store, model, on_fact, on_history
        self._history = model.history
        self._reader = Reader(decode=decode, on_skip=on_skip)
        self._who, self._lead_s = fresh_id("telemetry"), lead_s
        self._telling = False
        self.caught_up = False
        self.folded = 0
        self.trouble = ""
        self.leads = False

    @property
    def changes(self) -> Changes:
        """Where watchers hear of it."""
        return self._model.changes

    @property
    def skipped(self) -> int:
        """Public events that this release does not know or cannot read."""
        return self._reader.skipped

    async def run(self) -> None:
        """Project, or follow who does, for ever. History that began anew is filled again; one that is away is tried.

        Raises:
            EventStoreError: the log cannot be read; the caller starts this again.
        """
        while True:
            try:
                self.leads = await self._history.lead(self._who, self._lead_s)
                await (self._lead() if self.leads else self._stand_by())
                self._well()
            except Rebuilt as error:
                log.info("history stands elsewhere; going on from its own cursor", why=str(error))
                self.caught_up = False
                await asyncio.sleep(_AGAIN_S)
            except EventStoreError as error:
                self._say(f"event log: {error}")
                raise
            except NotWritten as error:
                if isinstance(error, HistoryAway):
                    self._on_history(str(error))
                    self._say(str(error))
                else:
                    log.error("history falls behind", why=str(error))
                await asyncio.sleep(RETRY_S)

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            if trouble:
                log.warning("the projection stands still", why=trouble)
            self.trouble = trouble
            self.changes.publish("", EVENTS)

    def _well(self) -> None:
        self._on_history(None)
        self._say("")

    async def _stand_by(self) -> None:
        """Tell watchers what the leader changed, until it is time to ask for the lead again."""
        revision = 0
        ends = asyncio.get_running_loop().time() + self._lead_s / 2
        while asyncio.get_running_loop().time() < ends:
            cursor = await self._history.cursor()
            if cursor is not None and cursor.revision > revision:
                for job in await self._history.changed_since(revision) if revision else {""}:
                    self.changes.publish(job, EVENTS)
                revision = cursor.revision
                self.caught_up = True
            self._well()
            await asyncio.sleep(min(_LOOK_S, self._lead_s / 4))

    async def _lead(self) -> None:
        following = asyncio.create_task(self._follow(), name="telemetry-follow")
        renewing = asyncio.create_task(self._renew(), name="telemetry-lead")
        try:
            done, _ = await asyncio.wait({following, renewing}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            following.cancel()
            renewing.cancel()
            await asyncio.gather(following, renewing, return_exceptions=True)

    async def _renew(self) -> None:
        """Returns when another replica has the lead."""
        while await self._history.lead(self._who, self._lead_s):
            await asyncio.sleep(min(_RENEW_S, self._lead_s / 3))

    async def _follow(self) -> None:
        cursor = await self._history.cursor()
        if cursor is not None and cursor.log != self._store.log_id:
            log.warning("the log is another one; folding it from its beginning", was=cursor.log)
            await self._history.forget()
            cursor = None
        # The durable cursor may be ahead of a history that began anew: history's own cursor decides, and the
        # subscription only goes on from there.
        # A history that began anew folds what metrics were told already.
        self._telling = cursor is not None
        async for events in pages(self._store, cursor, limit=BATCH):
            cursor = await self._fold(events, cursor)
        self._well()
        self._telling = True
        if not self.caught_up:
            self.caught_up = True
            self.changes.publish("", EVENTS)
        subscription = self._store.subscribe(DURABLE, streams=STREAMS, start=cursor)
        try:
            async for batch in _batches(subscription):
                cursor = await self._fold([r for r in batch if cursor is None or r.position > cursor], cursor)
                await subscription.ack(batch[-1])
        finally:
            await subscription.close()

    async def _fold(self, events: Sequence[Recorded], after: Position | None) -> Position | None:
        if not events:
            return after
        fresh = self._reader.projected(events)
        changed = await self._history.apply(fresh, after=after, cursor=events[-1].position)
        self.folded += len(fresh)
        for projected in fresh if self._telling else ():
            if isinstance(projected.fact, MeteredFact):
                self._on_fact(projected.job, projected.fact)
        for job in changed:
            self.changes.publish(job, EVENTS)
        return events[-1].position


async def _batches(subscription: Subscription) -> AsyncIterator[list[Recorded]]:
    """Events as they come, those of a moment together: the first one waits no longer than that for others."""
    source, clock = aiter(subscription), asyncio.get_running_loop().time
    pending: asyncio.Task[Recorded] | None = None
    try:
        while True:
            batch = [await (pending or _next(source))]
            pending, ends = None, clock() + _GATHER_S
            while len(batch) < BATCH:
                pending = _next(source)
                done, _ = await asyncio.wait({pending}, timeout=max(0.0, ends - clock()))
                if not done:
                    break
                batch.append(pending.result())
                pending = None
            yield batch
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


def _next(source: AsyncIterator[Recorded]) -> asyncio.Task[Recorded]:
    async def step() -> Recorded:
        return await anext(source)

    return asyncio.create_task(step())
