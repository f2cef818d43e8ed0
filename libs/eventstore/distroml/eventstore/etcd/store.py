"""The event store on etcd: a commit is one transaction there; what was committed is read through the log.

State, versions and command records are etcd's; events go into the outbox with their commit, from where the relay brings
them into the log. The reader that is given reads all of it as one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from distroml.events import Position, Recorded
from distroml.eventstore import limits
from distroml.eventstore.errors import translated
from distroml.eventstore.etcd.archive import Archive
from distroml.eventstore.etcd.commands import CommandLeases
from distroml.eventstore.etcd.keys import Keys
from distroml.eventstore.etcd.outbox import EtcdOutbox
from distroml.eventstore.etcd.retiring import Retired
from distroml.eventstore.etcd.transaction import Past, Transaction, decode_command
from distroml.eventstore.port import (
    CommandRecord,
    Commit,
    Committed,
    EventStoreError,
    Guard,
    Sealed,
    StoreFull,
    Subscription,
)
from distroml.eventstore.segments import SegmentLog
from distroml.statestore.etcd import EtcdClient, ops
from distroml.statestore.etcd.messages import RangeRequest
from distroml.statestore.port import LeaseGone
from distroml.statestore.wake import Wake

log = logging.getLogger(__name__)

OUTBOX_COMMITS = 100_000
"""Commits that wait for the relay at most."""
_COUNTED_S = 1.0


class Reader(Protocol):
    """The log and the outbox, read as one."""

    @property
    def wake(self) -> Wake:
        """To be notified whenever there may be new events."""
        ...

    async def read(
        self, *, after: Position | None = None, streams: Sequence[str] = (), limit: int = 1000
    ) -> Sequence[Recorded]:
        """As the event store's."""
        ...

    async def read_stream(self, stream: str, *, after: int = 0, limit: int = 1000) -> Sequence[Recorded]:
        """As the event store's."""
        ...

    def subscribe(self, durable: str, *, streams: Sequence[str] = (), start: Position | None = None) -> Subscription:
        """As the event store's."""
        ...

    def close(self) -> None:
        """End all subscriptions."""
        ...


class EtcdEventStore:
    """`EventStore` with its commits in etcd. See the port for what it promises.

    Args:
        client: shared with the deployment's state store.
        deployment: its id, and that of its log.
        outbox: the deployment's.
        reader: over this outbox and the log that the relay fills from it.
        archive: of what retired streams left behind.
        segments: the log's sealed copy, which has all events of a stream before it is retired.
        outbox_commits: how many commits may wait for the relay; past that, commits with events are refused.
    """

    def __init__(
        self,
        client: EtcdClient,
        deployment: str,
        outbox: EtcdOutbox,
        reader: Reader,
        archive: Archive,
        segments: SegmentLog,
        *,
        outbox_commits: int = OUTBOX_COMMITS,
    ) -> None:
        client.join()
        self.outbox = outbox
        self._client, self._deployment, self._reader = client, deployment, reader
        self._keys = Keys(deployment)
        self._retired = Retired(client, self._keys, archive, segments)
        self._leases = CommandLeases(client)
        self._room = _Room(outbox, outbox_commits)
        self._closed = False
        # A subscription has read the outbox to its end before it waits, and so the outbox tells from then on.
        outbox.on_news(reader.wake.notify)

    @property
    def log_id(self) -> str:
        """Id of this log."""
        return self._deployment

    async def commit(self, commit: Commit) -> Committed:
        """Write all of `commit` or none of it; on return it is durable.

        The checks, in order: bounds (`CommitRefused`), room in the outbox (`StoreFull`), the command id
        (`CommandKnown`), guards (`Fenced`), expected versions (`WrongExpectedVersion`). A commit with events whose
        answer is lost is sent again; that it was carried out is known by its entry in the outbox.
        """
        limits.check(commit)
        with translated():
            if any(append.events for append in commit.appends):
                await self._room.take()
            entry = f"{time.time_ns():016x}-{secrets.token_hex(8)}"
            past = self._retired.before([append.stream for append in commit.appends if not append.expected])
            while True:
                past = await self._retired.ask(past)
                lease = await self._leases.take() if commit.command else 0
                transaction = Transaction(self._keys, self.log_id, commit, entry, lease, past)
                try:
                    told = await self._try(transaction)
                except LeaseGone:
                    self._leases.forget(lease)
                    continue
                if isinstance(told, EventStoreError):
                    raise told
                if isinstance(told, Past):
                    past = told
                    continue
                self._reader.wake.notify()
                return told

    async def retire(
        self, stream: str, *, version: int, keys: Sequence[str] = (), guards: Sequence[Guard] = ()
    ) -> None:
        """Seal a finished stream: its keys leave etcd, all or none; see `retiring`."""
        await self._retired.retire(stream, version, keys, guards)

    async def sealed(self, stream: str) -> Sealed | None:
        """What a retired stream left behind; None where it is live, or does not exist."""
        return await self._retired.sealed(stream)

    async def read_stream(self, stream: str, *, after: int = 0, limit: int = 1000) -> Sequence[Recorded]:
        """Events of one stream with versions greater than `after`, oldest first."""
        return await self._reader.read_stream(stream, after=after, limit=limit)

    async def read(
        self, *, after: Position | None = None, streams: Sequence[str] = (), limit: int = 1000
    ) -> Sequence[Recorded]:
        """Events after a position, oldest first; raises `ValueError` for another log's position."""
        return await self._reader.read(after=after, streams=streams, limit=limit)

    async def head(self) -> Position:
        """The position of the newest event (revision 0 in an empty log)."""
        with translated():
            found = (await self._client.range(RangeRequest(key=self._keys.head))).kvs
        return Position(self.log_id, found[0].mod_revision, int(found[0].value)) if found else Position(self.log_id, 0)

    async def version(self, stream: str) -> int:
        """The stream's committed version, retired or not; 0 where it does not exist."""
        return await self._retired.version(stream)

    async def streams(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Names of live streams that start with `prefix` and sort after `after`, in order."""
        start, past = self._keys.stream(prefix), self._keys.stream(after) + b"\0"
        end = ops.end_of(start)
        if limit < 1 or (after and past >= end):
            return []
        request = RangeRequest(key=max(start, past) if after else start, range_end=end, limit=limit, keys_only=True)
        with translated():
            return [self._keys.stream_name(kv.key) for kv in (await self._client.range(request)).kvs]

    async def retired(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Names of retired streams that start with `prefix`, in the order of the archive."""
        return await self._retired.names(prefix, after, limit)

    async def parts(self, prefix: str) -> tuple[Mapping[str, bytes], int]:
        """Stored parts whose keys start with `prefix`, and the revision at which they were read together."""
        with translated():
            found, revision = await self._client.range_all(self._keys.key(prefix))
        return {self._keys.name(kv.key): kv.value for kv in found}, revision

    async def command(self, id: str) -> CommandRecord | None:
        """The accepted command of this id, kept for `COMMAND_TTL_S`."""
        with translated():
            found = (await self._client.range(RangeRequest(key=self._keys.command(id)))).kvs
        return decode_command(id, found[0].value) if found else None

    def subscribe(self, durable: str, *, streams: Sequence[str] = (), start: Position | None = None) -> Subscription:
        """Read on from the durable cursor of this name (from `start` where it has none yet)."""
        return self._reader.subscribe(durable, streams=streams, start=start)

    async def close(self) -> None:
        """End subscriptions, then release what the store holds."""
        if self._closed:
            return
        self._closed = True
        self._reader.close()
        await self._room.close()
        await self.outbox.close()
        await self._client.close()

    async def _try(self, transaction: Transaction) -> Committed | EventStoreError | Past:
        """Send a commit once: what it came to, why it was refused, or what the next try is to know."""
        if not transaction.hopeless:
            limits.check_coming_back(transaction.coming_back.values())
            response = await self._client.txn(transaction.request(), repeatable=transaction.repeatable)
            if response.succeeded:
                return transaction.committed(ops.revision_of(response))
        return transaction.told(await self._client.txn(transaction.reading(), repeatable=True))


class _Room:
    """Whether the outbox takes more, by a count a second or so old and what was committed here since.

    A commit waits for a count only where there is none yet, or an old one would refuse it. Else it is renewed beside
    the commits, and while etcd does not give one, the last one holds.
    """

    def __init__(self, outbox: EtcdOutbox, most: int) -> None:
        self._outbox, self._most = outbox, most
        self._counting = asyncio.Lock()
        self._count, self._until = -1, 0.0
        self._renewing: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Count one more commit; raises `StoreFull`."""
        if time.monotonic() >= self._until:
            if 0 <= self._count < self._most:
                if self._renewing is None or self._renewing.done():
                    self._renewing = asyncio.create_task(self._renew_beside())
            else:
                async with self._counting:
                    if time.monotonic() >= self._until:
                        await self._renew()
        if self._count >= self._most:
            raise StoreFull(
                f"the outbox holds {self._count} commits that the log has not taken yet, and {self._most} is the most;"
                " nothing was written. See why the relay is behind: its lease, JetStream, the object store"
            )
        self._count += 1

    async def close(self) -> None:
        """Count no more."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def _renew(self) -> None:
        self._count = await self._outbox.count()
        self._until = time.monotonic() + _COUNTED_S

    async def _renew_beside(self) -> None:
        try:
            await self._renew()
        except EventStoreError as error:
            # The commits themselves will tell their callers.
            log.debug("the outbox cannot be counted: %s", error)
