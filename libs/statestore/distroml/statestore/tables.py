"""What a back end stores and how it runs a transaction: the seam below both stores.

The rules of the two ports are written once, over these tables (`keyspace`, and `eventstore.committing`); the
memory and the SQLite back end only keep rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from distroml.statestore.liveness import Clock, Lease
from distroml.statestore.port import Change, Entry
from distroml.statestore.wake import Wake

R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)

CHANGES_KEPT = 20_000
"""Changes a watch can look back on; older ones are compacted."""
CHANGE_BYTES_KEPT = 16 * 1024 * 1024
"""Bytes of values that the change log holds at most."""


class Tables(Protocol):
    """The key space inside one transaction."""

    @property
    def revision(self) -> int:
        """The newest revision: the one counter of keys and events."""
        ...

    def advance(self) -> int:
        """The next revision, taken by this transaction."""
        ...

    def entry(self, key: str) -> Entry | None:
        """The entry of `key`."""
        ...

    def entries(self, prefix: str) -> list[Entry]:
        """Entries below `prefix`, in key order."""
        ...

    def put(self, entry: Entry) -> None:
        """Write an entry and log the change."""
        ...

    def remove(self, key: str, revision: int) -> None:
        """Delete an entry that exists and log the change."""
        ...

    def bound(self, lease: str) -> list[str]:
        """Keys bound to a lease, in order."""
        ...

    def lease(self, id: str) -> Lease | None:
        """The lease, or None where it is dead."""
        ...

    def leases(self) -> list[Lease]:
        """Every living lease."""
        ...

    def put_lease(self, lease: Lease) -> None:
        """Write a lease."""
        ...

    def drop_lease(self, id: str) -> None:
        """Forget a lease."""
        ...

    def changes(self, prefix: str, after: int, limit: int) -> Sequence[Change]:
        """Changes after a revision, oldest first, whole revisions only; raises `Compacted`."""
        ...


class Database(Protocol[T_co]):
    """A back end: transactions over its tables, clocks, and a wake-up after each commit."""

    @property
    def log_id(self) -> str:
        """Id of the deployment's log."""
        ...

    @property
    def clock(self) -> Clock:
        """The clocks of this back end."""
        ...

    @property
    def wake(self) -> Wake:
        """Notified after every commit, of this process or another one, and at closing."""
        ...

    @property
    def trouble(self) -> str:
        """Why this process's last write failed, whatever it was; empty where it did not."""
        ...

    async def read(self, run: Callable[[T_co], R]) -> R:
        """Run over one committed snapshot."""
        ...

    async def write(self, run: Callable[[T_co], R]) -> R:
        """Run as one transaction, durable on return; where `run` raises, nothing of it is written."""
        ...

    async def sweep(self) -> None:
        """Expire leases that are over, now instead of at the next sweep."""
        ...

    async def close(self) -> None:
        """Count one user less; with the last, finish what was accepted and release everything."""
        ...
