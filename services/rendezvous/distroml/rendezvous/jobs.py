"""The jobs that this process serves now."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from distroml.observability.tracing import Tracing
from distroml.rendezvous.adapters.codec import RendezvousRepository
from distroml.rendezvous.job import Job


class Jobs:
    """The actors of this process. One lives as long as somebody uses it."""

    def __init__(self, repository: RendezvousRepository, deployment: str, tracing: Tracing) -> None:
        self.repository = repository
        self._deployment, self._tracing = deployment, tracing
        self._actors: dict[str, tuple[Job, asyncio.Task[None]]] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def using(self, job: str) -> AsyncGenerator[Job, None]:
        """The job's actor, running."""
        self._users[job] = self._users.get(job, 0) + 1
        if job not in self._actors:
            made = Job(job, self.repository, self._deployment, self._tracing)
            # It outlives and serves more than the call that needs it first: nothing of that call's context is its own.
            running = asyncio.create_task(made.run(), name=f"job {job}", context=contextvars.Context())
            self._actors[job] = made, running
        actor, task = self._actors[job]
        try:
            yield actor
        finally:
            self._users[job] -= 1
            if not self._users[job]:
                del self._users[job], self._actors[job]
                task.cancel()
                actor.close()

    def seen(self, job: str, version: int) -> None:
        """The stream of `job` has reached `version`."""
        if job in self._actors:
            self._actors[job][0].seen(version)

    def look_again(self) -> None:
        """Something may have been committed that nobody told of."""
        for actor, _ in self._actors.values():
            actor.look_again()

    def close(self) -> None:
        """End every session; agents dial again."""
        for actor, _ in self._actors.values():
            actor.close()
