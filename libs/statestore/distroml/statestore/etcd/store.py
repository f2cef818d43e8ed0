"""The state store on etcd: the port's promises kept by etcd's own transactions, leases and watches."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from distroml.statestore import keyspace
from distroml.statestore.etcd import ops
from distroml.statestore.etcd.client import EtcdClient
from distroml.statestore.etcd.leases import Leases, id_of, name_of
from distroml.statestore.etcd.messages import EVENT_DELETE, KeyValue, RangeRequest, TxnRequest, TxnResponse
from distroml.statestore.etcd.watch import watch
from distroml.statestore.port import CasConflict, Change, Entry, Listing


def key_prefix(deployment: str) -> str:
    """Where the deployment's key space lies in etcd."""
    return f"{deployment}/key/"


class EtcdStateStore:
    """`StateStore` on etcd. See the port for what it promises.

    Leases are judged as `leases` says, by every process from its first call on.
    """

    def __init__(self, client: EtcdClient, deployment: str) -> None:
        client.join()
        self.client, self.deployment = client, deployment
        self._prefix = key_prefix(deployment)
        self._leases = Leases(client, f"{deployment}/lease/")
        self._judging: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    async def get(self, key: str) -> Entry | None:
        """The key's committed entry."""
        self._judge()
        found = await self.client.range(RangeRequest(key=self._key(key)))
        return self._entry(found.kvs[0]) if found.kvs else None

    async def list(self, prefix: str) -> Listing:
        """Every entry whose key starts with `prefix`."""
        self._judge()
        found, revision = await self.client.range_all(self._key(prefix))
        return Listing(tuple(map(self._entry, found)), revision)

    async def cas(self, key: str, value: bytes, *, expected: int, lease: str = "") -> Entry:
        """Write `key` if its revision is `expected`.

        Raises:
            CasConflict, LeaseGone: as the port says.
            ValueError: the key is malformed, or the value larger than 1 MiB.
        """
        keyspace.check_key(key)
        if len(value) > keyspace.MAX_VALUE_BYTES:
            raise ValueError(f"the value of {key!r} has {len(value)} bytes, at most {keyspace.MAX_VALUE_BYTES} fit")
        write = ops.put(self._key(key), value, id_of(lease) if lease else 0)
        done = await self._expecting(key, expected, write)
        return Entry(key, value, ops.revision_of(done), lease)

    async def delete(self, key: str, *, expected: int) -> None:
        """Remove `key` if its revision is `expected`; raises `CasConflict`."""
        await self._expecting(key, expected, ops.delete(self._key(key)))

    async def grant(self, ttl_s: int) -> str:
        """A new lease; `ttl_s` is at least 1."""
        if ttl_s < 1:
            raise ValueError(f"a lease lives for whole seconds, at least one; got {ttl_s}")
        self._judge()
        return await self._leases.grant(ttl_s)

    async def keep_alive(self, lease: str) -> None:
        """Renew `lease` for a full ttl; raises `LeaseGone`."""
        self._judge()
        await self._leases.keep_alive(lease)

    async def revoke(self, lease: str) -> None:
        """End `lease` at once and delete its keys."""
        await self._leases.revoke(lease)

    async def watch(self, prefix: str, *, after: int) -> AsyncIterator[Sequence[Change]]:
        """Changes below `prefix` after a revision, one batch per commit; raises `Compacted`."""
        self._judge()
        key = self._key(prefix)
        async for batch in watch(self.client, key, ops.end_of(key), after=after, ended=self._closed):
            yield tuple(
                Change(self._name(kv.key), None if event.type == EVENT_DELETE else kv.value, kv.mod_revision)
                for event in batch
                if (kv := event.kv) is not None
            )

    async def close(self) -> None:
        """Release what the store holds; running watches end."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._judging is not None:
            self._judging.cancel()
            await asyncio.gather(self._judging, return_exceptions=True)
        await self.client.close()

    def _judge(self) -> None:
        """Judge leases from now on, in the event loop that uses the store."""
        if self._judging is None and not self._closed.is_set():
            self._judging = asyncio.create_task(self._leases.judge(self._closed))

    async def _expecting(self, key: str, expected: int, write: ops.RequestOp) -> TxnResponse:
        self._judge()
        stored = self._key(key)
        request = TxnRequest(
            compare=(ops.at_revision(stored, expected),),
            success=(write,),
            failure=(ops.get(stored, keys_only=True),),
        )
        done = await self.client.txn(request)
        if not done.succeeded:
            found = done.responses[0].range
            raise CasConflict(key, expected, found.kvs[0].mod_revision if found and found.kvs else 0)
        return done

    def _key(self, key: str) -> bytes:
        return (self._prefix + key).encode()

    def _name(self, key: bytes) -> str:
        return key.decode()[len(self._prefix) :]

    def _entry(self, kv: KeyValue) -> Entry:
        return Entry(self._name(kv.key), kv.value, kv.mod_revision, name_of(kv.lease) if kv.lease else "")
