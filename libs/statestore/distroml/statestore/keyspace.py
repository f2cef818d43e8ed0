"""The rules of the key space, over any back end's tables. Each function is the body of one transaction."""

from __future__ import annotations

import secrets

from distroml.statestore.liveness import Clock, Judge, Lease
from distroml.statestore.port import CasConflict, Entry, LeaseGone
from distroml.statestore.tables import Tables

MAX_KEY_BYTES = 1024
MAX_VALUE_BYTES = 1024 * 1024


def check_key(key: str) -> None:
    """Raise `ValueError` unless `key` can be stored everywhere: 1 to 1024 bytes of printable text."""
    if not key or not key.isprintable() or len(key.encode(errors="replace")) > MAX_KEY_BYTES:
        raise ValueError(f"{key[:80]!r} is no key: it must be 1 to {MAX_KEY_BYTES} bytes of printable text")


def cas(tables: Tables, key: str, value: bytes, expected: int, lease: str) -> Entry:
    """Write `key` if it is at revision `expected`."""
    _expect(tables, key, expected)
    if lease and tables.lease(lease) is None:
        raise LeaseGone(f"lease {lease} is not alive: it expired or was revoked")
    entry = Entry(key, value, tables.advance(), lease)
    tables.put(entry)
    return entry


def delete(tables: Tables, key: str, expected: int) -> None:
    """Remove `key` if it is at revision `expected`; an absent key at expected 0 stays absent."""
    _expect(tables, key, expected)
    if expected:
        tables.remove(key, tables.advance())


def _expect(tables: Tables, key: str, expected: int) -> None:
    entry = tables.entry(key)
    actual = 0 if entry is None else entry.revision
    if actual != expected:
        raise CasConflict(key, expected, actual)


def grant(tables: Tables, clock: Clock, ttl_s: int) -> str:
    """A new lease."""
    id = f"lease-{secrets.token_hex(8)}"
    tables.put_lease(Lease(id, ttl_s, clock.monotonic(), clock.boot))
    return id


def keep_alive(tables: Tables, clock: Clock, id: str) -> None:
    """Renew a lease; takes no revision, since no key changes."""
    lease = tables.lease(id)
    if lease is None:
        raise LeaseGone(f"lease {id} is not alive: it expired or was revoked")
    tables.put_lease(Lease(id, lease.ttl_s, clock.monotonic(), clock.boot))


def revoke(tables: Tables, id: str) -> None:
    """End a lease and delete its keys under one revision."""
    keys = tables.bound(id)
    if keys:
        revision = tables.advance()
        for key in keys:
            tables.remove(key, revision)
    tables.drop_lease(id)


def expire(tables: Tables, clock: Clock, judge: Judge) -> int:
    """Revoke what `judge` finds over, judged inside the transaction; returns how many leases."""
    over = judge.sweep(clock.monotonic(), tables.leases())
    for id in over:
        revoke(tables, id)
    return len(over)
