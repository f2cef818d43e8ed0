"""The projection: public events of the log into the read models, at least once, from the model's own cursor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import DecodeError, Message

from distroml.events import Position, Recorded, UnknownEvent
from distroml.eventstore import EventStore, EventStoreError, Subscription
from distroml.observability import logger
from distroml.rpc.publicevents import decode_public
from distroml.telemetry.adapters.facts import fact_of, job_of
from distroml.telemetry.adapters.jobs import Projected
from distroml.telemetry.domain.facts import GenerationFormed, SaveSeen, SchemeChanged
from distroml.telemetry.live import EVENTS, Changes
from distroml.telemetry.readmodel import NotWritten, ReadModel, Rebuilt

log = logger(__name__)

DURABLE = "telemetry.jobs"
STREAMS = ("scheduler/", "rendezvous/", "checkpoint/")
BATCH = 500
RETRY_S = 1.0

Decode = Callable[[str, int, bytes], Message]


class Projector:
    """Keeps the read models at the head of the log.

    Attributes:
        caught_up: the model has reached the head once; before that pages say that the log is being read.
        folded: events taken since the start.
        skipped: public events that this release does not know or cannot read.
        trouble: why the log cannot be read just now, or empty.
    """

    def __init__(
        self,
        store: EventStore,
        model: ReadModel,
        *,
        decode: Decode = decode_public,
        on_fact: Callable[[str, GenerationFormed | SaveSeen | SchemeChanged], None] = lambda job, fact: None,
        on_skip: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._model, self._decode, self._on_fact = store, model, decode, on_fact
        self._on_skip = on_skip
        self._telling = False
        self.caught_up = False
        self.folded = 0
        self.skipped = 0
        self.trouble = ""

    @property
    def changes(self) -> Changes:
        """Where watchers hear of it."""
        return self._model.changes

    async def run(self) -> None:
        """Fold for ever. A model that began anew is filled again; a failing one is tried again.

        Raises:
            EventStoreError: the log cannot be read; the caller starts this again.
        """
        while True:
            try:
                await self._follow(self._model.epoch)
            except Rebuilt:
                self.caught_up = False
            except EventStoreError as error:
                self.trouble = str(error)
                self.changes.publish("", EVENTS)
                raise
            except NotWritten as error:
                log.error("the read model falls behind", why=str(error))
                await asyncio.sleep(RETRY_S)

    async def _follow(self, epoch: int) -> None:
        cursor = await self._model.cursor()
        if cursor is not None and cursor.log != self._store.log_id:
            log.warning("the log is another one; folding it from its beginning", was=cursor.log)
            await self._model.forget_cursor()
            cursor = None
        # The durable cursor may be ahead of a model that began anew: the model's own cursor decides, and the
        # subscription only goes on from there.
        # A model that began anew folds what metrics were told already.
        self._telling = cursor is not None
        while events := await self._store.read(after=cursor, streams=STREAMS, limit=BATCH):
            cursor = await self._fold(events, epoch)
        self.trouble = ""
        self._telling = True
        if not self.caught_up:
            self.caught_up = True
            self.changes.publish("", EVENTS)
        subscription = self._store.subscribe(DURABLE, streams=STREAMS, start=cursor)
        try:
            async for batch in _batches(subscription):
                await self._fold([r for r in batch if cursor is None or r.position > cursor], epoch)
                await subscription.ack(batch[-1])
        finally:
            await subscription.close()

    async def _fold(self, events: Sequence[Recorded], epoch: int) -> Position | None:
        if not events:
            return None
        fresh = [p for p in (self._projected(r) for r in events) if p is not None]
        await self._model.apply(fresh, events[-1].position, epoch=epoch)
        self.folded += len(fresh)
        for projected in fresh if self._telling else ():
            if isinstance(projected.fact, GenerationFormed | SaveSeen | SchemeChanged):
                self._on_fact(projected.job, projected.fact)
        return events[-1].position

    def _projected(self, recorded: Recorded) -> Projected | None:
        job = job_of(recorded.stream)
        if not recorded.public or not job:
            return None
        try:
            message = self._decode(recorded.type, recorded.schema, recorded.data)
            body = MessageToJson(message, preserving_proto_field_name=True, indent=None)
            fact = fact_of(message)
        except (UnknownEvent, DecodeError, ValueError) as error:
            self.skipped += 1
            self._on_skip()
            log.info("event skipped", type=recorded.type, stream=recorded.stream, why=str(error))
            return Projected(recorded=recorded, job=job, fact=None, json="")
        return Projected(recorded=recorded, job=job, fact=fact, json=body)


async def _batches(subscription: Subscription) -> AsyncIterator[list[Recorded]]:
    """Events as they come, as many at once as are there without waiting."""
    source = aiter(subscription)
    pending: asyncio.Task[Recorded] | None = None
    try:
        while True:
            batch = [await (pending or _next(source))]
            pending = None
            while len(batch) < BATCH:
                pending = _next(source)
                done, _ = await asyncio.wait({pending}, timeout=0.02)
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


__all__ = ["BATCH", "DURABLE", "STREAMS", "Decode", "EventStoreError", "Projector"]
