"""Streams of what happens: a job's states, and a job's events of all services."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import groupby
from typing import Final

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.events import Position, Recorded
from distroml.eventstore import EventStore
from distroml.rpc import errors
from distroml.rpc.publicevents import to_event
from distroml.scheduler.adapters.messages import job_message
from distroml.scheduler.board import Board
from distroml.scheduler.domain.explain import explain
from distroml.scheduler.domain.job import JOB, Job
from distroml.scheduler.domain.job.events import Event
from distroml.scheduler.find import Finder
from distroml.scheduler.signals import Pulse, heard
from distroml.scheduler.streams import Streams, job_stream

BATCH: Final = 200


def streams_of(job: str) -> tuple[str, ...]:
    """The streams of all services about a job."""
    return tuple(f"{service}/job/{job}" for service in ("scheduler", "rendezvous", "checkpoint"))


def position_of(text: str, log_id: str, field: str) -> Position | None:
    """A position from a request, None where it gives none."""
    if not text:
        return None
    try:
        position = Position.parse(text)
    except ValueError as error:
        raise errors.InvalidArgument([(field, str(error))]) from None
    if position.log != log_id:
        what = f"belongs to log {position.log!r}, this is {log_id!r}; begin again without it"
        raise errors.InvalidArgument([(field, what)])
    return position


class Follower:
    """Serves the two streams; both end when the service drains, and are resumed by position."""

    def __init__(self, streams: Streams, board: Board, finder: Finder, pulse: Pulse) -> None:
        self._streams, self._board, self._finder, self._pulse = streams, board, finder, pulse

    async def job(self, request: pb.WatchJobRequest) -> AsyncIterator[pb.WatchJobResponse]:
        """The job now (or every state it had after a position), then each further one."""
        found = await self._finder.job(request.job)
        after = position_of(request.after, self._streams.store.log_id, "after")
        stream, job, version = job_stream(found.state.id), JOB.initial, 0
        sent: pb.Job | None = None
        with self._board.changed.listening() as woken:
            while True:
                entry = self._board.entry(found.state.id)
                is_news = version == 0 or entry is None or entry.version > version
                recorded: list[Recorded] = []
                if is_news:
                    recorded += await self._streams.store.read_stream(stream, after=version)
                for position, events in _commits(recorded):
                    job = JOB.fold((self._decode(one) for one in events), since=job)
                    version = events[-1].version
                    is_newest = version == recorded[-1].version
                    if (after is not None and position > after) or (after is None and is_newest):
                        sent = self._message(job, version, position)
                        yield pb.WatchJobResponse(job=sent, position=str(position))
                if recorded:
                    after = recorded[-1].position if after is None else max(after, recorded[-1].position)
                    continue
                # Why it waits may change though the job does not.
                now = self._message(job, version, after) if after is not None else None
                if now is not None and sent is not None and (now.reason, now.message) != (sent.reason, sent.message):
                    sent = now
                    yield pb.WatchJobResponse(job=now, position=str(after))
                await heard(woken)

    def _message(self, job: Job, version: int, position: Position) -> pb.Job:
        pending = self._board.pending().get(job.id)
        return job_message(job, version, str(position), explain(job, pending))

    def _decode(self, recorded: Recorded) -> Event:
        return self._streams.jobs.codec.decode(recorded.type, recorded.schema, recorded.data)

    async def events(self, request: pb.ListEventsRequest) -> AsyncIterator[pb.ListEventsResponse]:
        """Events of a job, or of everything, after a position, oldest first; goes on where it is to follow."""
        store = self._streams.store
        if request.limit < 0:
            raise errors.InvalidArgument([("limit", f"is {request.limit}; use 0 for all")])
        patterns = streams_of((await self._finder.job(request.job)).state.id) if request.job else ()
        after = position_of(request.after, store.log_id, "after")
        left = request.limit or None
        with self._pulse.signal.listening() as woken:
            while True:
                async for batch in _batches(store, patterns, after, left):
                    after = batch[-1].position
                    left = None if left is None else left - len(batch)
                    yield pb.ListEventsResponse(events=[to_event(one) for one in batch], position=str(after))
                    if left == 0:
                        return
                if not request.follow:
                    return
                await heard(woken)


async def _batches(
    store: EventStore, patterns: Sequence[str], after: Position | None, limit: int | None
) -> AsyncIterator[Sequence[Recorded]]:
    while batch := await store.read(after=after, streams=patterns, limit=BATCH if limit is None else min(limit, BATCH)):
        yield batch
        after = batch[-1].position
        if limit is not None:
            limit -= len(batch)
            if limit <= 0:
                return
        # A long log is read in many pieces; others get their turn in between.
        await asyncio.sleep(0)


def _commits(recorded: Sequence[Recorded]) -> list[tuple[Position, list[Recorded]]]:
    """Events by commit, each with the position of its last one."""
    groups = (list(events) for _, events in groupby(recorded, key=lambda one: one.position.revision))
    return [(events[-1].position, events) for events in groups]
