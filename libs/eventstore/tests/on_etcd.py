"""Deployments on a real etcd for tests."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from distroml.eventstore.etcd import OUTBOX_COMMITS, Archive, EtcdEventStore, EtcdOutbox, Keys, open_event_store
from distroml.eventstore.jetstream import JetStreamLog, JetStreamReader
from distroml.eventstore.relay.core import SealPolicy
from distroml.eventstore.relay.memory import MemoryLog
from distroml.eventstore.relay.relay import Relay
from distroml.eventstore.segments import SegmentLog
from distroml.objectstore.memory import open_object_store
from distroml.statestore.etcd import EtcdClient, EtcdSettings, EtcdStateStore, open_state_store


@dataclass(frozen=True)
class Deployment:
    client: EtcdClient
    keys: Keys
    events: EtcdEventStore
    state: EtcdStateStore
    outbox: EtcdOutbox
    log: MemoryLog | JetStreamLog
    segments: SegmentLog
    relayed: bool

    async def seal(self):
        """Return once everything that was committed is in segments; without a relay, bring it there."""
        newest = (await self.events.head()).revision
        async with asyncio.timeout(20):
            while (end := await self.segments.sealed()) < newest:
                if self.relayed:
                    await asyncio.sleep(0.02)
                else:
                    await self.segments.seal(end, await self.outbox.pending(after=end, limit=1000))


@asynccontextmanager
async def deployment(
    *servers, id="", relayed=False, log=None, objects=None, timeout_s=5.0, outbox_commits=OUTBOX_COMMITS
):
    """The stores of a deployment, a relay behind them where asked for, and a log in memory or made by `log(id)`."""
    id = id or f"dep-{secrets.token_hex(4)}"
    endpoints = tuple(f"http://127.0.0.1:{server.port}" for server in servers)
    client = EtcdClient(EtcdSettings(endpoints=endpoints, timeout_s=timeout_s))
    state = open_state_store(client, id)
    log = MemoryLog() if log is None else log(id)
    objects = open_object_store() if objects is None else objects
    segments = SegmentLog(objects, id)
    pages = log if isinstance(log, MemoryLog) else JetStreamReader(log)
    events = open_event_store(state, pages, segments, Archive(objects, id), outbox_commits=outbox_commits)
    relay = Relay(events.outbox, log, segments, reload_bytes=1 << 20, policy=SealPolicy(bytes=2000, age_s=0.05))
    running = asyncio.create_task(relay.run()) if relayed else None
    try:
        yield Deployment(client, Keys(id), events, state, events.outbox, log, segments, relayed)
    finally:
        if running is not None:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        await events.close()
        await state.close()
