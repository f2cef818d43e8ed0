"""Leases with which the records of accepted commands end; bounded in how many keys end at once."""

from __future__ import annotations

import asyncio
import time

from distroml.eventstore.port import COMMAND_TTL_S
from distroml.statestore.etcd import EtcdClient

_SHARED_S = 600
_SHARED_BY = 1000
"""Records of one lease at most: etcd deletes all its keys in one transaction when it ends."""


class CommandLeases:
    """One lease for the commands of ten minutes, or for a thousand of them; each record lives 24 h at least."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._granting = asyncio.Lock()
        self._lease, self._left, self._until = 0, 0, 0.0

    async def take(self) -> int:
        """The lease for one more record."""
        async with self._granting:
            if self._left <= 0 or time.monotonic() > self._until:
                self._lease = await self._client.grant(COMMAND_TTL_S + _SHARED_S)
                self._left, self._until = _SHARED_BY, time.monotonic() + _SHARED_S
            self._left -= 1
            return self._lease

    def forget(self, lease: int) -> None:
        """This lease is gone: etcd was restored from a snapshot, or somebody revoked it."""
        if self._lease == lease:
            self._left = 0
