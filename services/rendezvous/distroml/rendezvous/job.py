"""One actor per job in use: the only place of this process where the job's commands are decided and committed.

Commands that come while a commit is on its way are decided together and committed as one. Other replicas may write
the same stream: a lost race decides again, and what they committed is read from the log, so that every replica
tells its own agents everything, once and in order.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from distroml import observability
from distroml.events import Context, Recorded, Rejection
from distroml.eventstore import CommitRefused, Fenced, Guard
from distroml.eventstore.handle import Unit, transact
from distroml.observability.tracing import Tracing
from distroml.rendezvous.adapters.codec import RendezvousRepository, stream_of
from distroml.rendezvous.adapters.keys import extra_parts, fence_guard, fence_key
from distroml.rendezvous.adapters.messages import event_response
from distroml.rendezvous.domain import Command, Event, Rendezvous, ReportExit, ReportLinks, ReportMeasured, ReportPlan
from distroml.rendezvous.journal import note
from distroml.rendezvous.session import Remembered, Session
from distroml.rendezvous.spans import JobSpans
from distroml.rpc import Caller
from distroml.rpc.errors import Unavailable

log = observability.logger(__name__)

MAX_QUEUED: Final = 4096
_BATCH_COMMANDS: Final = 40
_BATCH_BYTES: Final = 400_000
_RACES: Final = 8
_RETRY_S: Final = 0.2
_READ: Final = 500


@dataclass(slots=True, eq=False)
class _Asked:
    command: Command
    caller: Caller
    guard: Guard | None
    session: Session | None
    done: asyncio.Future[Rendezvous]


class Job:
    """The actor of one job. `state` is the committed state as far as this process has seen it."""

    def __init__(self, job: str, repository: RendezvousRepository, deployment: str, tracing: Tracing) -> None:
        self.name = job
        self.state = repository.decider.initial
        self.version = 0
        self.acked = Remembered()
        self.spans = JobSpans(job, tracing)
        self._repository, self._deployment = repository, deployment
        self._asked: deque[_Asked] = deque()
        self._sessions: set[Session] = set()
        self._seen = 0
        self._project = ""
        self._wake = asyncio.Event()

    def submit(
        self, command: Command, caller: Caller, *, guard: Guard | None = None, session: Session | None = None
    ) -> asyncio.Future[Rendezvous]:
        """Decide and commit `command`; the future has the state after it, or raises what refused it.

        With `session` the agent is joined in the same instant: it is told of every event after that state.
        """
        done: asyncio.Future[Rendezvous] = asyncio.get_running_loop().create_future()
        if len(self._asked) >= MAX_QUEUED:
            done.set_exception(Unavailable("Busy", f"{MAX_QUEUED} commands of {self.name} wait already; try again"))
            return done
        self._asked.append(_Asked(command, caller, guard, session, done))
        self._wake.set()
        return done

    def leave(self, session: Session) -> None:
        """Tell `session` nothing any more."""
        self._sessions.discard(session)

    def seen(self, version: int) -> None:
        """Somebody committed the stream's `version`: read up to it where this process has not."""
        if version > max(self._seen, self.version):
            self._seen = version
            self._wake.set()

    def look_again(self) -> None:
        """Something may have been committed that nobody told of."""
        self.seen(self.version + 1)

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            try:
                await self._begin()
                while True:
                    await self._wake.wait()
                    self._wake.clear()
                    while self._asked:
                        await self._commit(self._batch())
                    if self._seen > self.version:
                        await self._catch_up()
            except Exception:
                # What was being decided has its answer already; what this process does not know yet is read again.
                log.exception("the job's log cannot be read; trying again", job=self.name)
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    def close(self) -> None:
        """Refuse what still waits."""
        for asked in self._asked:
            if not asked.done.done():
                asked.done.set_exception(Unavailable("Draining", "the service is going down; try again"))
        for session in self._sessions:
            session.end(Unavailable("Draining", "the service is going down; join again"))

    async def _begin(self) -> None:
        if self.version == 0:
            draft = await self._repository.load(stream_of(self.name))
            newest = await self._repository.store.read_stream(draft.stream, after=draft.version - 1, limit=1)
            self.state, self.version = draft.state, draft.version
            self._project = newest[0].context.project if newest else ""

    def _batch(self) -> Sequence[_Asked]:
        """What waits under one guard, at least one and not more than a commit may hold."""
        batch: list[_Asked] = []
        size = 0
        while self._asked and len(batch) < _BATCH_COMMANDS:
            asked = self._asked[0]
            size += _bytes(asked.command)
            if batch and (asked.guard != batch[0].guard or size > _BATCH_BYTES):
                break
            batch.append(self._asked.popleft())
        return batch

    async def _commit(self, batch: Sequence[_Asked]) -> None:
        try:
            refused = await self._decide(batch)
        except CommitRefused as error:
            # One of them is past a bound; the others are not to suffer for it.
            if len(batch) == 1:
                _answer(batch[0], error)
            else:
                for asked in batch:
                    await self._commit([asked])
            return
        except Exception as error:
            for asked in batch:
                _answer(asked, error)
            return
        for asked in batch:
            rejection = refused.get(id(asked))
            # Whose stream is gone by now, its future is cancelled.
            if rejection is None and asked.session is not None and not asked.done.done():
                self._sessions.add(asked.session)
                asked.session.admit(self.state)
                asked.session.check(self.state)
            _answer(asked, rejection or self.state)

    async def _decide(self, batch: Sequence[_Asked]) -> dict[int, Rejection]:
        refused: dict[int, Rejection] = {}
        events: list[Event] = []
        reached = self.version
        races = 0

        async def decide() -> Unit:
            nonlocal races, reached
            stream = stream_of(self.name)
            draft = await self._repository.load(stream)
            if races and draft.version != await self._repository.store.version(stream):
                draft = await self._repository.load(stream, refold=True)
            races += 1
            before = draft.state
            refused.clear()
            for asked in batch:
                try:
                    draft = draft.decide(asked.command)
                except Rejection as rejection:
                    refused[id(asked)] = rejection
            events[:] = draft.events
            reached = draft.version + len(draft.events)
            guards = [guard for guard in (batch[0].guard,) if guard is not None]
            if draft.state.number != before.number:
                guards.append(fence_guard(self.name, before.number))
            return Unit((draft,), tuple(extra_parts(before, draft.state)), tuple(guards))

        while True:
            try:
                outcome = await transact(self._repository.store, decide, context=self._context(batch))
                break
            except Fenced as error:
                # Another replica opened a generation between the reading and the commit.
                if error.key != fence_key(self.name) or races >= _RACES:
                    raise
        if outcome.events and outcome.events[0].version == self.version + 1:
            self._take(zip(outcome.events, events, strict=True))
        elif reached > self.version:
            self._seen = max(self._seen, reached)
            await self._catch_up()
        self._check()
        return refused

    async def _catch_up(self) -> None:
        codec = self._repository.codec
        while self._seen > self.version:
            batch = await self._repository.store.read_stream(stream_of(self.name), after=self.version, limit=_READ)
            if not batch:
                # State is written with its events, so nothing is missing: what was seen is of another log's time.
                self._seen = self.version
                break
            self._take((recorded, codec.decode(recorded.type, recorded.schema, recorded.data)) for recorded in batch)
        self._check()

    def _take(self, events: Iterable[tuple[Recorded, Event]]) -> None:
        """Take committed events into account, in the order of their versions."""
        for recorded, event in events:
            self.state = self._repository.decider.evolve(self.state, event)
            self.version, self._project = recorded.version, recorded.context.project
            note(event, self.name)
            self.spans.saw(event, recorded.context.traceparent)
            if (response := event_response(event)) is not None:
                response.traceparent = recorded.context.traceparent
                for session in self._sessions:
                    session.tell(response)

    def _check(self) -> None:
        for session in self._sessions:
            session.check(self.state)

    def _context(self, batch: Sequence[_Asked]) -> Context:
        """Of the first caller; where several agents' words are decided together, the service is the actor."""
        first = batch[0].caller
        if any(asked.caller.actor != first.actor for asked in batch):
            first = replace(first, actor="rendezvous")
        first = replace(first, traceparent=self.spans.of_commit())
        return first.context(
            deployment=self._deployment,
            project=self._project,
            time_ms=time.time_ns() // 1_000_000,
            generation=self.state.number,
        )


def _bytes(command: Command) -> int:
    """About what the events of a command take beyond a few hundred bytes."""
    match command:
        case ReportExit():
            return 8_000 + min(len(command.traceback), 32_000)
        case ReportPlan():
            return len(command.plan) + len(command.inputs) + len(command.prediction) + len(command.best)
        case ReportMeasured():
            return 1_000 + len(command.parts)
        case ReportLinks():
            return 1_000 + len(command.topology) + len(command.sums)
        case _:
            return 1_000


def _answer(asked: _Asked, answer: Rendezvous | Exception) -> None:
    if asked.done.done():
        return
    if isinstance(answer, Exception):
        asked.done.set_exception(answer)
    else:
        asked.done.set_result(answer)
