"""The state store port: small keys with compare-and-set, leases and watches.

It promises what etcd keeps, and no more: whole-second ttls, watches that may lag and must resynchronise after
compaction, no range read inside a commit. Leases are hints about liveness; whoever acts on one compares a
fence in its commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class StateStoreError(Exception):
    """Root of what a state store raises.

    StateStoreError
    ├── CasConflict       the key changed since it was read
    ├── LeaseGone         the lease expired or was revoked
    ├── Compacted         the watch's start is no longer kept: list again, then watch
    ├── StateStoreFull    there is no room; nothing was written
    ├── StateStoreDamaged the stored data cannot be trusted; says which file and what to do
    └── StateStoreDown    the back end did not answer; nothing is known about the outcome
    """


class CasConflict(StateStoreError):
    """A compare-and-set whose expectation did not hold; `actual` is the key's revision, 0 where it is absent."""

    def __init__(self, key: str, expected: int, actual: int) -> None:
        super().__init__(f"{key!r} is at revision {actual}, expected {expected}")
        self.key, self.expected, self.actual = key, expected, actual


class LeaseGone(StateStoreError):
    """The lease is not alive any more."""


class Compacted(StateStoreError):
    """Changes after the asked revision are no longer all kept."""


class StateStoreFull(StateStoreError):
    """Nothing was written: there is no room."""


class StateStoreDamaged(StateStoreError):
    """The stored data fails its own checks."""


class StateStoreDown(StateStoreError):
    """The back end cannot be reached or failed in the middle."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key. `revision` is that of the commit which wrote it last; `lease` the id it lives and dies with."""

    key: str
    value: bytes
    revision: int
    lease: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """One change seen by a watch; `value` is None where the key was deleted or its lease expired."""

    key: str
    value: bytes | None
    revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries below a prefix, in key order, and the revision at which all of them held together."""

    entries: tuple[Entry, ...]
    revision: int


class StateStore(Protocol):
    """Compare-and-set keys, leases and watches. Shares its revisions with the event store of the deployment."""

    async def get(self, key: str) -> Entry | None:
        """The key's committed entry."""
        ...

    async def list(self, prefix: str) -> Listing:
        """Every entry whose key starts with `prefix`."""
        ...

    async def cas(self, key: str, value: bytes, *, expected: int, lease: str = "") -> Entry:
        """Write `key` if its revision is `expected` (0: it must be absent), bound to `lease` where given.

        Raises:
            CasConflict: the expectation did not hold.
            LeaseGone: the lease is dead.
        """
        ...

    async def delete(self, key: str, *, expected: int) -> None:
        """Remove `key` if its revision is `expected`; raises `CasConflict`."""
        ...

    async def grant(self, ttl_s: int) -> str:
        """A new lease that dies `ttl_s` whole seconds after its last renewal; returns its id."""
        ...

    async def keep_alive(self, lease: str) -> None:
        """Renew `lease` for a full ttl; raises `LeaseGone`."""
        ...

    async def revoke(self, lease: str) -> None:
        """End `lease` at once and delete its keys; ending a dead lease is no error."""
        ...

    def watch(self, prefix: str, *, after: int) -> AsyncIterator[Sequence[Change]]:
        """Changes below `prefix` with revisions greater than `after`, batched by commit, in order.

        Raises:
            Compacted: the log of changes no longer reaches back to `after`.
        """
        ...

    async def close(self) -> None:
        """Release what the store holds; running watches end."""
        ...
