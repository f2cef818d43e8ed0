"""The scheduling cycle: looks at everything, decides purely, commits under its lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from distroml.events import Rejection
from distroml.eventstore import MAX_COMMIT_OPERATIONS, Guard, WrongExpectedVersion
from distroml.observability import logger
from distroml.observability.tracing import Tracing
from distroml.rpc import calling, system_caller
from distroml.scheduler import metrics
from distroml.scheduler.board import Board
from distroml.scheduler.domain.plan import Snapshot, Step, revive, settle, silent
from distroml.scheduler.signals import heard
from distroml.scheduler.spans import scheduling
from distroml.scheduler.streams import Streams, now_ms

log = logger(__name__)

ACTOR: Final = "scheduler-cycle"
WRITES_PER_COMMIT: Final = MAX_COMMIT_OPERATIONS - 10
"""Events, streams and state parts of the steps that are committed together; the ledger's own are in the rest."""

IDLE_S: Final = 1.0
"""The cycle looks around this often even when nothing woke it."""


class Cycle:
    """Runs after each change, debounced; a plan that was overtaken is dropped and computed anew."""

    def __init__(
        self, streams: Streams, board: Board, tracing: Tracing, *, debounce_s: float, silence_s: float
    ) -> None:
        self._streams, self._board, self._tracing = streams, board, tracing
        self._debounce_s, self._silence_s = debounce_s, silence_s
        self._silent_since: dict[tuple[str, int], float] = {}
        self._gauges = metrics.Gauges()

    async def run(self, guard: Guard) -> None:
        """Until cancelled; raises `Fenced` where another replica took over."""
        with self._board.changed.listening() as woken, calling(system_caller(actor=ACTOR)):
            try:
                while True:
                    await self.once(guard)
                    await heard(woken, IDLE_S)
                    await asyncio.sleep(self._debounce_s)
                    woken.clear()
            finally:
                self._gauges.clear()

    async def once(self, guard: Guard) -> None:
        """One cycle."""
        began = time.monotonic()
        # 1. A snapshot of everything, at one position.
        await self._board.refresh()
        snapshot = self._board.snapshot()
        # 2. Settle: take back slots on which nothing runs any more, tell the jobs whose attempts ended or were lost.
        steps = [*settle(snapshot, now_ms()), *self._revived(snapshot)]
        if await self._commit(steps, guard):
            await self._board.refresh()
            snapshot = self._board.snapshot()
        # 3. Order the queue, 4. place what fits, each of the others gets its reason: pure, and shared with the lists.
        plan = self._board.plan()
        # 5. Commit the placements: jobs and ledger together, several jobs at once.
        if await self._commit(plan.steps, guard):
            metrics.PLACED.inc(len(plan.steps))
        # 6. Measure.
        metrics.CYCLE_SECONDS.observe(time.monotonic() - began)
        self._gauges.look(snapshot, plan.pending, now_ms())

    async def _commit(self, steps: Sequence[Step], guard: Guard) -> bool:
        for some in _chunks(steps):
            jobs = [step.job or step.node for step in some]
            try:
                await self._write(some, guard)
            except (Rejection, WrongExpectedVersion) as overtaken:
                # Somebody changed a job meanwhile. The steps that still hold are found again by the next cycle.
                log.info("a plan was overtaken", jobs=jobs, why=str(overtaken))
                if len(some) > 1:
                    await self._one_by_one(some, guard)
        return bool(steps)

    async def _one_by_one(self, steps: Sequence[Step], guard: Guard) -> None:
        for step in steps:
            try:
                await self._write([step], guard)
            except (Rejection, WrongExpectedVersion) as overtaken:
                log.info("a step was overtaken", job=step.job, why=str(overtaken))

    async def _write(self, steps: Sequence[Step], guard: Guard) -> None:
        with scheduling(self._tracing, steps, self._board.jobs) as traceparent:
            context = replace(self._streams.context(), traceparent=traceparent)
            await self._streams.commit_steps(steps, context=context, guards=(guard,))

    def _revived(self, snapshot: Snapshot) -> Iterator[Step]:
        """Jobs that nobody runs and nobody closed, once that has lasted too long to be on its way."""
        now, found = time.monotonic(), set(silent(snapshot))
        self._silent_since = {key: self._silent_since.get(key, now) for key in found}
        for (job, attempt), since in self._silent_since.items():
            if now - since >= self._silence_s:
                yield revive(job, attempt, now_ms())


def _chunks(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    chunk: list[Step] = []
    size = 0
    for step in steps:
        writes = _writes(step)
        if chunk and size + writes > WRITES_PER_COMMIT:
            yield chunk
            chunk, size = [], 0
        chunk.append(step)
        size += writes
    if chunk:
        yield chunk


def _writes(step: Step) -> int:
    """At most so many events, streams and parts: a command gives up to two events, a state has two parts."""
    job = 3 + 2 * len(step.job_commands) if step.job_commands else 0
    node = 3 + len(step.node_commands) if step.node_commands else 0
    return job + node + 2 * len(step.ledger_commands)
