"""Retiring a stream on etcd: what it leaves behind is put into the archive, then one transaction takes its keys away.

That transaction compares everything that was read before the put, so whatever a commit changed meanwhile is read and
put again. Killed before it, all is as before but for an object that nothing leads to; after it, the stream is retired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from distroml.eventstore.errors import translated
from distroml.eventstore.etcd.archive import Archive
from distroml.eventstore.etcd.keys import Keys
from distroml.eventstore.etcd.transaction import NO_PAST, Past, holding, holds
from distroml.eventstore.limits import check_retiring, check_sealed
from distroml.eventstore.port import (
    MAX_SEALED_PARTS,
    Fenced,
    Guard,
    NotSealable,
    Sealed,
    StoreDown,
    WrongExpectedVersion,
    state_prefix,
)
from distroml.eventstore.segments import SegmentLog
from distroml.statestore.etcd import EtcdClient, ops
from distroml.statestore.etcd.messages import KeyValue, RangeRequest, RequestOp, TxnRequest, TxnResponse
from distroml.statestore.failpoint import hit

_LOOKED_AT = 100
"""Streams that one transaction looks for: within etcd's 128 operations."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A stream and what belongs to it, at one revision of etcd; `stream` is None where it is absent."""

    revision: int
    stream: KeyValue | None
    retired: int
    newest: int
    parts: Mapping[bytes, KeyValue]


@dataclass(frozen=True, slots=True)
class _Retirement:
    """Retiring one stream, as transactions: pure."""

    keys: Keys
    stream: str
    own: tuple[bytes, ...]
    guards: tuple[Guard, ...]

    @property
    def prefix(self) -> bytes:
        return self.keys.key(state_prefix(self.stream))

    def reading(self) -> TxnRequest:
        """All that is looked at, at one moment."""
        state = RangeRequest(key=self.prefix, range_end=ops.end_of(self.prefix), limit=MAX_SEALED_PARTS + 1)
        return TxnRequest(
            success=(
                ops.get(self.keys.stream(self.stream)),
                ops.get(self.keys.retired(self.stream), keys_only=True),
                ops.get(self.keys.head, keys_only=True),
                RequestOp(range=state),
                *(ops.get(key) for key in self.own),
                *(ops.get(self.keys.key(guard.key)) for guard in self.guards),
            )
        )

    def found(self, response: TxnResponse) -> _Found:
        """What `reading` found; raises `Fenced`."""
        ranges = [one.range.kvs if one.range else () for one in response.responses]
        (stream, retired, head, state), rest = ranges[:4], ranges[4:]
        for guard, kvs in zip(self.guards, rest[len(self.own) :], strict=True):
            if not holds(guard, kvs[0] if kvs else None):
                raise Fenced(guard.key)
        return _Found(
            ops.revision_of(response),
            stream[0] if stream else None,
            retired[0].mod_revision if retired else 0,
            head[0].mod_revision if head else 0,
            {kv.key: kv for kvs in (state, *rest[: len(self.own)]) for kv in kvs},
        )

    def request(self, found: _Found, stream: KeyValue) -> TxnRequest:
        """Take all keys of the stream away, if they still are what was found."""
        absent = (key for key in self.own if key not in found.parts)
        return TxnRequest(
            compare=(
                ops.at_revision(stream.key, stream.mod_revision),
                *(ops.at_revision(kv.key, kv.mod_revision) for kv in found.parts.values()),
                *(ops.at_revision(key, 0) for key in absent),
                ops.unchanged_since(self.prefix, found.revision),
                *(holding(self.keys, guard) for guard in self.guards),
            ),
            success=(
                ops.delete(stream.key),
                ops.delete_below(self.prefix),
                *(ops.delete(key) for key in self.own if key in found.parts and not key.startswith(self.prefix)),
                ops.put(self.keys.retired(self.stream), self.stream.encode()),
            ),
        )


class Retired:
    """The streams that have left etcd.

    Args:
        client: of etcd.
        keys: of the deployment.
        archive: has what they left behind.
        segments: where their events must have arrived.
    """

    def __init__(self, client: EtcdClient, keys: Keys, archive: Archive, segments: SegmentLog) -> None:
        self._client, self._keys, self._archive, self._segments = client, keys, archive, segments
        self._at: dict[bytes, int] = {}
        self._sealed_to = 0

    async def retire(self, stream: str, version: int, keys: Sequence[str], guards: Sequence[Guard]) -> None:
        """As the event store's; the checks are in the order of the errors that it names."""
        check_retiring(version, keys, guards)
        own = tuple(dict.fromkeys(map(self._keys.key, keys)))
        retirement = _Retirement(self._keys, stream, own, tuple(guards))
        while True:
            with translated():
                found = retirement.found(await self._client.txn(retirement.reading(), repeatable=True))
            if found.stream is None:
                actual = await self._archive.version(stream) if found.retired else 0
                if actual != version:
                    raise WrongExpectedVersion(stream, version, actual)
                return
            if (actual := int(found.stream.value)) != version:
                raise WrongExpectedVersion(stream, version, actual)
            sealed = Sealed(version, {self._keys.name(kv.key): kv.value for kv in found.parts.values()})
            check_sealed(stream, sealed.parts)
            # Past the newest event of all there are none that could still be on their way.
            revision = min(found.stream.mod_revision, found.newest)
            if self._sealed_to < revision:
                self._sealed_to = await self._segments.sealed()
            if self._sealed_to < revision:
                raise NotSealable(stream, revision, self._sealed_to)
            hit("etcd.retire")
            await self._archive.put(stream, sealed, revision=found.revision)
            hit("etcd.retire")
            with translated():
                # Sent twice, the second one is refused by its own comparisons, and what is there is looked at again.
                done = await self._client.txn(retirement.request(found, found.stream), repeatable=True)
            hit("etcd.retire")
            if done.succeeded:
                return

    async def sealed(self, stream: str) -> Sealed | None:
        """What an absent stream left behind; None for one that is there, or never was."""
        live, retired = await self._look(stream)
        return await self._archive.load(stream) if live is None and retired else None

    async def version(self, stream: str) -> int:
        """The version of a stream, retired or not."""
        live, retired = await self._look(stream)
        if live is not None:
            return int(live.value)
        return await self._archive.version(stream) if retired else 0

    async def names(self, prefix: str, after: str, limit: int) -> list[str]:
        """Names of retired streams, in the order of the archive."""
        request = RangeRequest(key=self._keys.all_retired, range_end=ops.end_of(self._keys.all_retired), limit=1)
        with translated():
            if not (await self._client.range(request)).kvs:
                return []
        found: list[str] = []
        while len(found) < limit and (page := await self._archive.names(prefix, after=after, limit=_LOOKED_AT)):
            after = page[-1]
            # What came back, or was never taken away, has its object there as well.
            reads = tuple(ops.get(self._keys.stream(stream), keys_only=True) for stream in page)
            with translated():
                live = (await self._client.txn(TxnRequest(success=reads), repeatable=True)).responses
            found += [name for name, one in zip(page, live, strict=True) if not (one.range and one.range.kvs)]
        return found[:limit]

    def before(self, new: Sequence[str]) -> Past:
        """What a commit on new streams knows before it was sent; of others it assumes that they are live."""
        if not new:
            return NO_PAST
        at = {key: self._at.get(key, 0) for key in map(self._keys.retired, new)}
        return Past(at, asking=frozenset(stream for stream in new if at[self._keys.retired(stream)]))

    async def ask(self, past: Past) -> Past:
        """The same with the archive's answers; raises `StoreDown` while that gives none."""
        for key, revision in past.at.items():
            self._at[key] = max(revision, self._at.get(key, 0))
        if not past.asking:
            return past
        told = dict(past.told)
        for stream in sorted(past.asking):
            try:
                told[stream] = await self._archive.load(stream)
            except StoreDown as error:
                raise StoreDown(
                    f"whether {stream} was retired before cannot be told now, and nothing was written: {error}"
                ) from error
        return replace(past, told=told, asking=frozenset())

    async def _look(self, stream: str) -> tuple[KeyValue | None, int]:
        """The key of a stream, and the revision of the one that tells of retired streams."""
        request = TxnRequest(
            success=(ops.get(self._keys.stream(stream)), ops.get(self._keys.retired(stream), keys_only=True))
        )
        with translated():
            response = await self._client.txn(request, repeatable=True)
        live, retired = (one.range.kvs if one.range else () for one in response.responses)
        return live[0] if live else None, retired[0].mod_revision if retired else 0
