"""The outbox in etcd: commits by rising revision, without a gap; see the port for what it promises.

A watch holds the newest commits (`NewestCommits`), so that reading on at the end of a long outbox costs no look at all
of it: what etcd is asked each time is how far the commits and the trimming have come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from distroml.eventstore.errors import translated
from distroml.eventstore.etcd.keys import Keys
from distroml.eventstore.etcd.newest import NewestCommits
from distroml.eventstore.etcd.transaction import decode_entry
from distroml.eventstore.log import Place
from distroml.eventstore.port import StoreDamaged
from distroml.eventstore.relay import OutboxEntry, OutboxTrimmed
from distroml.statestore.etcd import EtcdClient, ops
from distroml.statestore.etcd.messages import ASCENDING, SORT_BY_MOD, KeyValue, RangeRequest, RequestOp, TxnRequest

_TRIM_KEYS: Final = 100
"""Keys that one transaction deletes: within etcd's 128 operations."""

_PAGE: Final = 1000
_REACH_S: Final = 1.0
"""How long a watch may be behind before a listing is asked for instead."""


class EtcdOutbox:
    """`Outbox` over the keys that commits write. To be closed before the client."""

    def __init__(self, client: EtcdClient, keys: Keys, log_id: str) -> None:
        self._client, self._keys, self._log_id = client, keys, log_id
        self._newest = NewestCommits(client, keys.outbox, self._decode)

    def on_news(self, call: Callable[[], None]) -> None:
        """Have `call` called when there may be new commits, from the first `pending` on."""
        self._newest.on_news = call

    def told(self, *, after: int, limit: int) -> Sequence[OutboxEntry] | None:
        """What the watch has told of the next commits after a revision; None where it does not reach back so far."""
        return self._newest.next(after, limit) if self._newest.covers(after) else None

    async def pending(self, *, after: int, limit: int) -> Sequence[OutboxEntry]:
        """The next commits after a revision; raises `OutboxTrimmed`."""
        if limit < 1:
            return ()
        with translated():
            through = self._newest.through
            response = await self._client.txn(TxnRequest(success=self._marks()), repeatable=True)
            trimmed, head = (one.range.kvs if one.range else () for one in response.responses)
            revision = ops.revision_of(response)
            self._check_trimmed(trimmed, after)
            if revision < through:
                # What was known before the question is past the answer: etcd was brought back from an older copy.
                self._newest.forget()
            newest = head[0].mod_revision if head else 0
            if newest <= after:
                self._newest.join(after, (), revision)
                return ()
            if self._newest.covers(after) and await self._newest.reach(newest, _REACH_S) and self._newest.covers(after):
                return self._newest.next(after, limit)
            return await self._listed(after, limit)

    async def wait(self, *, after: int, timeout_s: float) -> None:
        """Return when there may be a commit after a revision, or the time is over."""
        if not self._newest.begun:
            self._newest.join(after, (), after)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._newest.past(after)

    async def trim(self, *, up_to: int) -> None:
        """Let go of commits; an `up_to` past the newest one counts for those that are there."""
        start, end = self._keys.outbox, ops.end_of(self._keys.outbox)
        with translated():
            while True:
                # By name, which is by age as far as the writers' clocks agree: etcd stops after a page, where by
                # revision it would look at all of them for each. Whoever reads after what is let go of here finds
                # nothing older that comes in a later page: it is up to `up_to`, too.
                page = await self._client.range(RangeRequest(key=start, range_end=end, limit=_PAGE, keys_only=True))
                gone = sorted((kv for kv in page.kvs if kv.mod_revision <= up_to), key=lambda kv: kv.mod_revision)
                for first in range(0, len(gone), _TRIM_KEYS):
                    await self._let_go(gone[first : first + _TRIM_KEYS])
                if not page.more:
                    return
                start = page.kvs[-1].key + b"\0"

    async def count(self) -> int:
        """How many commits wait in it."""
        with translated():
            request = RangeRequest(key=self._keys.outbox, range_end=ops.end_of(self._keys.outbox), count_only=True)
            return (await self._client.range(request)).count

    async def trimmed(self) -> Place:
        """The place of the last event that has left, (0, 0) where none has."""
        with translated():
            found = await self._client.range(RangeRequest(key=self._keys.trimmed))
        return _place(found.kvs)

    async def close(self) -> None:
        """Follow the commits no longer."""
        await self._newest.close()

    async def _listed(self, after: int, limit: int) -> Sequence[OutboxEntry]:
        """The next commits as etcd lists them."""
        request = TxnRequest(success=(ops.get(self._keys.trimmed), self._by_revision(after + 1, limit)))
        response = await self._client.txn(request, repeatable=True)
        trimmed, listed = (one.range.kvs if one.range else () for one in response.responses)
        self._check_trimmed(trimmed, after)
        entries = [self._decode(kv) for kv in listed]
        if len(entries) < limit:
            self._newest.join(after, entries, ops.revision_of(response))
        return entries

    async def _let_go(self, keys: Sequence[KeyValue]) -> None:
        """Delete commits, and mark them as gone in the same transaction; whoever is faster has done the same."""
        while True:
            reads = TxnRequest(success=(ops.get(self._keys.trimmed), ops.get(keys[-1].key)))
            response = await self._client.txn(reads, repeatable=True)
            marker, newest = (one.range.kvs if one.range else () for one in response.responses)
            place = _place(marker)
            if newest:
                last = self._decode(newest[0])
                place = max(place, (last.revision, last.events[-1].position.index))
            request = TxnRequest(
                # Whoever trimmed meanwhile has moved the marker; it is looked at again then.
                compare=(ops.at_revision(self._keys.trimmed, marker[0].mod_revision if marker else 0),),
                success=(*(ops.delete(kv.key) for kv in keys), ops.put(self._keys.trimmed, b"%d.%d" % place)),
            )
            # Sent twice, the second one is refused by its own comparison, and what is there is looked at again.
            if (await self._client.txn(request, repeatable=True)).succeeded:
                return

    def _marks(self) -> tuple[RequestOp, ...]:
        return ops.get(self._keys.trimmed), ops.get(self._keys.head)

    def _by_revision(self, least: int, limit: int) -> RequestOp:
        return RequestOp(
            range=RangeRequest(
                key=self._keys.outbox,
                range_end=ops.end_of(self._keys.outbox),
                min_mod_revision=least,
                sort_order=ASCENDING,
                sort_target=SORT_BY_MOD,
                limit=limit,
            )
        )

    def _check_trimmed(self, marker: Sequence[KeyValue], after: int) -> None:
        trimmed, _ = _place(marker)
        if after < trimmed:
            raise OutboxTrimmed(after, trimmed)

    def _decode(self, kv: KeyValue) -> OutboxEntry:
        try:
            return decode_entry(self._log_id, kv)
        except ValueError as error:
            raise StoreDamaged(
                f"the outbox's commit of revision {kv.mod_revision} is damaged ({error}): key {kv.key.decode()!r};"
                " restore etcd from a snapshot, and do not go on from this state"
            ) from error


def _place(marker: Sequence[KeyValue]) -> Place:
    if not marker:
        return 0, 0
    revision, _, index = marker[0].value.partition(b".")
    return int(revision), int(index)
