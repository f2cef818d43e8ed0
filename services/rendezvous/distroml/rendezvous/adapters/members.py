"""Memberships as leases: `leases/members/<job>/<node>`, renewed by the heartbeats of the agent's stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from distroml import observability
from distroml.statestore import CasConflict, LeaseGone, StateStore, StateStoreError

log = observability.logger(__name__)

PREFIX: Final = "leases/members/"


async def present(store: StateStore) -> Mapping[str, set[str]]:
    """Nodes whose membership is alive, by job."""
    found: dict[str, set[str]] = {}
    for entry in (await store.list(PREFIX)).entries:
        job, _, node = entry.key.removeprefix(PREFIX).rpartition("/")
        found.setdefault(job, set()).add(node)
    return found


class Membership:
    """One agent's membership of a job for its node. The newest to take it has it."""

    def __init__(self, store: StateStore, job: str, node: str, agent_id: str, ttl_s: int) -> None:
        self._store, self._ttl_s = store, ttl_s
        self._key, self._value = f"{PREFIX}{job}/{node}", agent_id.encode()
        self._lease = ""
        self._renewed = 0.0
        self._renewing: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Hold the membership for a full ttl, whoever held it before."""
        self._lease = await self._store.grant(self._ttl_s)
        while True:
            entry = await self._store.get(self._key)
            try:
                expected = entry.revision if entry else 0
                await self._store.cas(self._key, self._value, expected=expected, lease=self._lease)
            except CasConflict:
                continue
            self._renewed = time.monotonic()
            return

    def renew(self) -> None:
        """A sign of life came: renew in the background, at most every sixth of the ttl."""
        busy = self._renewing is not None and not self._renewing.done()
        if not busy and time.monotonic() - self._renewed >= self._ttl_s / 6:
            self._renewing = asyncio.create_task(self._renew(), name=f"renew {self._key}")

    async def end(self) -> None:
        """The node left: end the membership at once."""
        await self.close()
        if self._lease:
            await self._store.revoke(self._lease)

    async def close(self) -> None:
        """Renew no longer; the membership lasts for what is left of its ttl."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def _renew(self) -> None:
        try:
            try:
                await self._store.keep_alive(self._lease)
                self._renewed = time.monotonic()
            except LeaseGone:
                # This process stood still for longer than the ttl while others judged.
                await self.take()
        except StateStoreError as error:
            log.warning("a membership could not be renewed; the next heartbeat tries again", key=self._key, why=error)
