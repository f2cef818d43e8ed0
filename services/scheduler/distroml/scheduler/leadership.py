"""Being the one replica that runs a cycle, a reactor or a judge: a lease, and its fence in every commit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from distroml.events import fresh_id
from distroml.eventstore import Fenced, Guard
from distroml.observability import logger
from distroml.rpc.leases import acquire, lease_held
from distroml.statestore import LeaseGone, StateStore

log = logger(__name__)


class Leadership:
    """One role, held by at most one replica at a time.

    The lease is a hint: a replica that stood still may believe in it too long. What it commits then is refused,
    because `work` compares the lease's fence in every commit.
    """

    def __init__(self, state: StateStore, role: str, *, ttl_s: int) -> None:
        self._state, self._ttl_s = state, ttl_s
        self._key = f"leases/scheduler/{role}"
        self._holder = fresh_id("replica")
        self.held = False

    async def run(self, work: Callable[[Guard], Awaitable[None]]) -> None:
        """Run `work` whenever this replica holds the role, until cancelled; the lease is given up at the end."""
        while True:
            lease, guard = await acquire(self._state, self._key, holder=self._holder, ttl_s=self._ttl_s)
            self.held = True
            log.info("took over", role=self._key)
            try:
                with lease_held(self._key):
                    async with asyncio.TaskGroup() as tasks:
                        keeper = tasks.create_task(self._keep(lease))
                        worker = asyncio.ensure_future(work(guard))
                        tasks.create_task(_together(worker, keeper))
            except* (LeaseGone, Fenced):
                log.warning("lost the lease", role=self._key)
            finally:
                self.held = False
                with contextlib.suppress(Exception):
                    await self._state.revoke(lease)

    async def _keep(self, lease: str) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            await self._state.keep_alive(lease)


async def _together(worker: asyncio.Future[None], keeper: asyncio.Task[None]) -> None:
    """The work; when it ends or is cancelled, the lease is not kept any longer."""
    try:
        await worker
    finally:
        worker.cancel()
        keeper.cancel()
