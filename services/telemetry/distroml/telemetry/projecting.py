"""Reading the log for history: recorded events to what they mean, and one pass from a position to the head."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

from google.protobuf.message import DecodeError, Message

from distroml.events import Position, Recorded, UnknownEvent
from distroml.eventstore import EventStore
from distroml.observability import logger
from distroml.rpc.publicevents import decode_public
from distroml.telemetry.adapters.facts import fact_of, job_of
from distroml.telemetry.history.port import Projected

log = logger(__name__)

STREAMS = ("scheduler/", "rendezvous/", "checkpoint/")

Decode = Callable[[str, int, bytes], Message]


class Reader:
    """Turns recorded events into what history folds.

    Attributes:
        skipped: public events that this release does not know or cannot read; they are kept without a meaning.
    """

    def __init__(self, *, decode: Decode = decode_public, on_skip: Callable[[], None] = lambda: None) -> None:
        self._decode, self._on_skip = decode, on_skip
        self.skipped = 0

    def projected(self, events: Sequence[Recorded]) -> list[Projected]:
        """Those that are about a job and public."""
        return [p for p in map(self._projected, events) if p is not None]

    def _projected(self, recorded: Recorded) -> Projected | None:
        job = job_of(recorded.stream)
        if not recorded.public or not job:
            return None
        try:
            fact = fact_of(self._decode(recorded.type, recorded.schema, recorded.data))
        except (UnknownEvent, DecodeError, ValueError) as error:
            self.skipped += 1
            self._on_skip()
            log.info("event skipped", type=recorded.type, stream=recorded.stream, why=str(error))
            fact = None
        return Projected(recorded=recorded, job=job, fact=fact)


async def pages(store: EventStore, after: Position | None, *, limit: int) -> AsyncIterator[Sequence[Recorded]]:
    """The log from `after` to its head as it is when the last page is read, oldest first."""
    while events := await store.read(after=after, streams=STREAMS, limit=limit):
        yield events
        after = events[-1].position
