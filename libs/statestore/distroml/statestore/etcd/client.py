"""A client of etcd's API v3: several endpoints with failover, TLS, a password; a call has happened where it returns.

A call that reached no server is made again, on the next endpoint, until its time is over; one that may have been
carried out is made again only where it may happen twice. What cannot be known is `StateStoreDown`.
"""

from __future__ import annotations

import asyncio

from grpc import StatusCode
from grpc.aio import AioRpcError

from distroml.statestore.etcd.errors import Verdict, judge, translate
from distroml.statestore.etcd.members import Members
from distroml.statestore.etcd.messages import (
    COMPACT,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    LEASE_TIME_TO_LIVE,
    RANGE,
    STATUS,
    TXN,
    CompactionRequest,
    KeyValue,
    LeaseGrantRequest,
    LeaseRequest,
    Method,
    RangeRequest,
    RangeResponse,
    Request,
    Response,
    StatusRequest,
    TxnRequest,
    TxnResponse,
)
from distroml.statestore.etcd.ops import end_of, revision_of
from distroml.statestore.etcd.settings import EtcdSettings
from distroml.statestore.port import Compacted, LeaseGone, StateStoreDown

PAGE = 1000
"""Keys of one read; a longer listing takes several, of one revision."""

_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.5)
# Where there is another member to ask, one that is silent is not waited for to the end.
_SILENCE_S = 2.0


class EtcdClient:
    """Calls of one cluster. Shared by the stores of a process that `join` it; belongs to one event loop."""

    def __init__(self, settings: EtcdSettings) -> None:
        self.settings = settings
        self.closed = asyncio.Event()
        self._members: Members | None = None
        self._users = 0

    def join(self) -> None:
        """Count one more user, who will call `close`."""
        self._users += 1

    @property
    def members(self) -> Members:
        """The members; their channels are made on first use, in the event loop that uses them."""
        if self.closed.is_set():
            raise StateStoreDown("the store is closed")
        if self._members is None:
            self._members = Members(self.settings)
        return self._members

    async def range(self, request: RangeRequest) -> RangeResponse:
        """Read keys as all members agree on them."""
        return await self.call(RANGE, request, repeatable=True)

    async def range_all(self, prefix: bytes, *, keys_only: bool = False) -> tuple[list[KeyValue], int]:
        """Every key below a prefix, in order, and the revision at which all of them held together."""
        while True:
            try:
                return await self._range_all(prefix, keys_only)
            except Compacted:
                # Compacted between two pages: the listing begins anew, of a newer revision.
                continue

    async def txn(self, request: TxnRequest, *, repeatable: bool = False) -> TxnResponse:
        """Compare and write, or do neither.

        Args:
            request: the transaction.
            repeatable: it only reads, or its comparisons see to it that it is carried out once, and tell so.

        Raises:
            StateStoreDown: its outcome is unknown.
        """
        return await self.call(TXN, request, repeatable=repeatable)

    async def grant(self, ttl_s: int) -> int:
        """A new lease; where an answer is lost, the lease of that try expires unused."""
        return (await self.call(LEASE_GRANT, LeaseGrantRequest(ttl=ttl_s), repeatable=True)).id

    async def keep_alive(self, lease: int) -> None:
        """Renew a lease, over another member where the current one is gone; raises `LeaseGone`."""
        response = await self.call(LEASE_KEEP_ALIVE, LeaseRequest(id=lease), repeatable=True)
        if response.ttl <= 0:
            raise LeaseGone("the lease is not alive: it expired or was revoked")

    async def age_s(self, lease: int) -> int | None:
        """Seconds since a lease was granted, renewed, or taken over by a leader, rounded up; None where it is gone."""
        told = await self.call(LEASE_TIME_TO_LIVE, LeaseRequest(id=lease), repeatable=True)
        return None if told.ttl < 0 else told.granted_ttl - told.ttl

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys; raises `LeaseGone`."""
        await self.call(LEASE_REVOKE, LeaseRequest(id=lease), repeatable=True)

    async def compact(self, revision: int) -> None:
        """Forget history before `revision`; raises `Compacted` where that was done."""
        await self.call(COMPACT, CompactionRequest(revision=revision, physical=True), repeatable=True)

    async def alarms(self) -> tuple[str, ...]:
        """What the current member complains of, in etcd's words: a full quota is `alarm:NOSPACE`."""
        return (await self.call(STATUS, StatusRequest(), repeatable=True)).errors

    async def close(self) -> None:
        """Refuse everything once the last user closes."""
        self._users -= 1
        if self._users > 0 or self.closed.is_set():
            return
        self.closed.set()
        if self._members is not None:
            await self._members.close()

    async def call(self, method: Method[Request, Response], request: Request, *, repeatable: bool) -> Response:
        """Call `method` until it is answered, as far as that is safe.

        Raises:
            StateStoreDown, StateStoreFull, StateStoreDamaged, LeaseGone, Compacted: as etcd says.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.timeout_s
        tries, failure = 0, None
        while True:
            members = self.members
            member, token = members.current, members.token
            left_s = max(deadline - loop.time(), 0.001)
            ready = False
            try:
                if not members.prepared(member):
                    await members.prepare(member, min(left_s, _SILENCE_S))
                token, ready = members.token, True
                patience_s = min(left_s, _SILENCE_S) if repeatable and members.count > 1 else left_s
                return await member.call(method, request, token=token, timeout_s=patience_s)
            except AioRpcError as error:
                verdict = judge(error)
                # What only prepared the call has not begun it.
                again = verdict in (Verdict.UNSENT, Verdict.STALE_TOKEN) or (
                    verdict is Verdict.LOST and (repeatable or not ready)
                )
                if verdict is Verdict.STALE_TOKEN:
                    members.forget_token(token)
                elif verdict is not Verdict.REFUSED or not ready:
                    members.failed(member)
                # Where our own time ended before a call began, what went wrong before says more.
                if failure is None or ready or error.code() is not StatusCode.DEADLINE_EXCEEDED:
                    failure = translate(error, member.url, begun=ready)
                if not again or loop.time() >= deadline:
                    raise failure from error
            except StateStoreDown:
                # It is no etcd that we work with; another member may be.
                members.failed(member)
                raise
            except ValueError as error:
                members.failed(member)
                raise StateStoreDown(f"{member.url} gives answers that are not etcd's ({error})") from error
            tries += 1
            if tries % members.count == 0:
                await pause(tries // members.count, self.closed)

    async def _range_all(self, prefix: bytes, keys_only: bool) -> tuple[list[KeyValue], int]:
        found: list[KeyValue] = []
        start, revision = prefix, 0
        while True:
            page = await self.range(
                RangeRequest(key=start, range_end=end_of(prefix), limit=PAGE, revision=revision, keys_only=keys_only)
            )
            found += page.kvs
            revision = revision or revision_of(page)
            if not page.more:
                return found, revision
            start = page.kvs[-1].key + b"\0"


async def pause(tries: int, ended: asyncio.Event) -> None:
    """Wait before trying again, longer after more tries; not past `ended`."""
    try:
        async with asyncio.timeout(_PAUSES_S[min(tries, len(_PAUSES_S)) - 1]):
            await ended.wait()
    except TimeoutError:
        return
