"""Who is lost, and what has been waited for long enough: one replica judges, on its own monotonic clock.

A judge that just started, or stood still for a third of a member's ttl, first grants every member a full ttl and
every wait its full time: nobody is lost because the judge was away.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Final

from distroml import observability
from distroml.events import Rejection
from distroml.eventstore import EventStore, EventStoreError, Fenced, Guard
from distroml.rendezvous.adapters import members
from distroml.rendezvous.adapters.keys import OPEN_PREFIX, is_open
from distroml.rendezvous.domain import Command, ReportLost, Tick, Waiting, limit_ms, waiting
from distroml.rendezvous.job import Job
from distroml.rendezvous.jobs import Jobs
from distroml.rpc import system_caller
from distroml.rpc.leases import acquire, lease_held
from distroml.rpc.retirement import Retirement
from distroml.statestore import LeaseGone, StateStore

log = observability.logger(__name__)

LEASE_KEY: Final = "leases/rendezvous/judge"
LEASE_TTL_S: Final = 5


class Sight:
    """What a judge has seen, and since when: pure over the times it is given, in seconds of one monotonic clock."""

    def __init__(self, now: float, ttl_s: int) -> None:
        self._ttl_s = ttl_s
        self._awake_since = self._last = now
        self._waits: dict[str, tuple[Waiting, float]] = {}

    def look(self, now: float) -> None:
        """The judge looks at `now`; after too long a pause everything begins anew."""
        if now - self._last > self._ttl_s / 3:
            self._awake_since = now
            self._waits.clear()
        self._last = now

    @property
    def may_judge(self) -> bool:
        """Whether an absent lease means a lost member: the judge has been awake for a full ttl."""
        return self._last - self._awake_since >= self._ttl_s

    def waited_ms(self, job: str, wait: Waiting | None) -> int:
        """For how long the job has been seen to wait for `wait`."""
        if wait is None:
            self._waits.pop(job, None)
            return 0
        seen = self._waits.get(job)
        if seen is None or seen[0] != wait:
            self._waits[job] = seen = (wait, self._last)
        return int((self._last - seen[1]) * 1000)

    def forget(self, job: str) -> None:
        """The job is closed."""
        self._waits.pop(job, None)


class Judge:
    """The background task that judges while this replica holds the judge's lease, with `retirement` beside it."""

    def __init__(
        self, events: EventStore, states: StateStore, jobs: Jobs, retirement: Retirement, *, ttl_s: int
    ) -> None:
        self._events, self._states, self._jobs, self._retirement = events, states, jobs, retirement
        self._ttl_s = ttl_s
        # Well below the third of a ttl after which a judge takes itself for one that stood still.
        self._interval_s = min(0.5, ttl_s / 8)

    async def run(self) -> None:
        """Take the lease when it is free, judge while holding it."""
        while True:
            lease, guard = await acquire(self._states, LEASE_KEY, holder="", ttl_s=LEASE_TTL_S)
            log.info("judging memberships")
            try:
                with lease_held(LEASE_KEY):
                    async with self._retirement.beside(guard):
                        await self._judge(lease, guard)
            except (LeaseGone, Fenced):
                log.info("another replica judges memberships")
            finally:
                await self._states.revoke(lease)

    async def _judge(self, lease: str, guard: Guard) -> None:
        sight = Sight(time.monotonic(), self._ttl_s)
        renewed = time.monotonic()
        async with AsyncExitStack() as stack:
            held: dict[str, tuple[Job, AsyncExitStack]] = {}
            while True:
                now = time.monotonic()
                if now - renewed >= LEASE_TTL_S / 5:
                    await self._states.keep_alive(lease)
                    renewed = now
                sight.look(now)
                await self._hold_open_jobs(held, stack, sight)
                alive = await members.present(self._states)
                for name, (job, _) in list(held.items()):
                    for command in self._due(sight, job, alive.get(name, set())):
                        await self._submit(job, command, guard)
                await asyncio.sleep(self._interval_s)

    async def _hold_open_jobs(
        self, held: dict[str, tuple[Job, AsyncExitStack]], stack: AsyncExitStack, sight: Sight
    ) -> None:
        """Keep an actor for every job that the index names, and for no other."""
        parts, _ = await self._events.parts(OPEN_PREFIX)
        names = {key.removeprefix(OPEN_PREFIX) for key in parts}
        for name in held.keys() - names:
            sight.forget(name)
            await held.pop(name)[1].aclose()
        for name in names - held.keys():
            own = await stack.enter_async_context(AsyncExitStack())
            held[name] = await own.enter_async_context(self._jobs.using(name)), own

    def _due(self, sight: Sight, job: Job, alive: set[str]) -> list[Command]:
        state, at_ms = job.state, time.time_ns() // 1_000_000
        if not is_open(state):
            return []
        lost: list[Command] = []
        if sight.may_judge:
            lost = [
                ReportLost(at_ms=at_ms, node=name, agent_id=node.agent_id)
                for name, node in state.joined.items()
                if name not in alive
            ]
        wait, limit = waiting(state), limit_ms(state)
        waited = sight.waited_ms(job.name, wait)
        if lost or wait is None or limit is None or waited < limit:
            return lost
        return [Tick(at_ms=at_ms, waiting=wait, waited_ms=waited)]

    async def _submit(self, job: Job, command: Command, guard: Guard) -> None:
        try:
            with observability.bound(job=job.name):
                log.info("judged", command=type(command).__name__, what=str(command))
                await job.submit(command, system_caller(actor="rendezvous"), guard=guard)
        except Rejection as rejection:
            log.warning("a judgement was refused", job=job.name, reason=rejection.reason, why=rejection.message)
        except Fenced:
            raise
        except EventStoreError as error:
            log.warning("a judgement could not be recorded; it is made again", job=job.name, why=str(error))
