"""The key space as SQLite rows, inside one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from distroml.statestore.failpoint import hit
from distroml.statestore.liveness import Lease
from distroml.statestore.port import Change, Compacted, Entry
from distroml.statestore.tables import CHANGE_BYTES_KEPT, CHANGES_KEPT

PRUNE_EVERY = 256
"""Changes written between two cuts of the change log, and so roughly how many a cut removes."""
_LARGE_BYTES = 64 * 1024
_LAST = "\U0010ffff"


class SqliteTables:
    """Rows through one connection. The counters are read once per transaction and stored at its end."""

    def __init__(self, connection: sqlite3.Connection, changes_kept: int = CHANGES_KEPT) -> None:
        self._connection = connection
        self._changes_kept = changes_kept
        rows = dict(self.query("SELECT name, value FROM meta WHERE name IN ('revision', 'chain')"))
        self.revision: int = rows["revision"]
        self.chain: bytes = rows["chain"]
        self._stored = (self.revision, self.chain)

    def query(self, statement: str, values: Sequence[object] = ()) -> list[Any]:
        """All rows of a reading statement."""
        return self._connection.execute(statement, values).fetchall()

    def execute(self, statement: str, values: Sequence[object] = ()) -> None:
        """A writing statement; every one is a failpoint, so that crash tests stop between any two."""
        hit("sqlite.statement")
        self._connection.execute(statement, values)

    def executemany(self, statement: str, values: Sequence[Sequence[object]]) -> None:
        """A writing statement for each row."""
        for row in values:
            self.execute(statement, row)

    def savepoint(self) -> tuple[int, bytes]:
        """Begin one of the transaction's parts, which can be undone alone."""
        self.execute("SAVEPOINT part")
        return self.revision, self.chain

    def release(self) -> None:
        """Keep the part."""
        self.execute("RELEASE part")

    def undo(self, counters: tuple[int, bytes]) -> None:
        """Undo the part."""
        self.execute("ROLLBACK TO part")
        self.release()
        self.revision, self.chain = counters

    def store_counters(self) -> None:
        """Write the counters where they moved; the last statement before COMMIT."""
        if (self.revision, self.chain) != self._stored:
            rows = [("revision", self.revision), ("chain", self.chain)]
            for name, value in rows:
                self.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))

    def advance(self) -> int:
        """The next revision."""
        self.revision += 1
        return self.revision

    def entry(self, key: str) -> Entry | None:
        """The entry of `key`."""
        rows = self.query("SELECT key, value, revision, lease FROM keys WHERE key = ?", (key,))
        return Entry(*rows[0]) if rows else None

    def entries(self, prefix: str) -> list[Entry]:
        """Entries below `prefix`, in key order."""
        rows = self.query(
            "SELECT key, value, revision, lease FROM keys WHERE key >= ? AND key < ? ORDER BY key",
            (prefix, prefix + _LAST),
        )
        return [Entry(*row) for row in rows]

    def put(self, entry: Entry) -> None:
        """Write an entry and log the change."""
        self.execute(
            "INSERT INTO keys VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE"
            " SET value = excluded.value, revision = excluded.revision, lease = excluded.lease",
            (entry.key, entry.value, entry.revision, entry.lease),
        )
        self._log(Change(entry.key, entry.value, entry.revision))

    def remove(self, key: str, revision: int) -> None:
        """Delete an entry that exists and log the change."""
        self.execute("DELETE FROM keys WHERE key = ?", (key,))
        self._log(Change(key, None, revision))

    def bound(self, lease: str) -> list[str]:
        """Keys bound to a lease, in order."""
        return [key for (key,) in self.query("SELECT key FROM keys WHERE lease = ? ORDER BY key", (lease,))]

    def lease(self, id: str) -> Lease | None:
        """The lease, or None where it is dead."""
        rows = self.query("SELECT id, ttl_s, renewed, boot FROM leases WHERE id = ?", (id,))
        return Lease(*rows[0]) if rows else None

    def leases(self) -> list[Lease]:
        """Every living lease."""
        return [Lease(*row) for row in self.query("SELECT id, ttl_s, renewed, boot FROM leases")]

    def put_lease(self, lease: Lease) -> None:
        """Write a lease."""
        self.execute(
            "INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", (lease.id, lease.ttl_s, lease.renewed, lease.boot)
        )

    def drop_lease(self, id: str) -> None:
        """Forget a lease."""
        self.execute("DELETE FROM leases WHERE id = ?", (id,))

    def changes(self, prefix: str, after: int, limit: int) -> Sequence[Change]:
        """Changes after a revision, oldest first, whole revisions only; raises `Compacted`."""
        ((compacted,),) = self.query("SELECT value FROM meta WHERE name = 'compacted'")
        if after < compacted:
            raise Compacted(f"changes up to revision {compacted} are no longer kept; asked after {after}")
        span = "SELECT revision FROM changes WHERE revision > ? AND key >= ? AND key < ? ORDER BY revision LIMIT 1"
        bounds = (after, prefix, prefix + _LAST)
        last = self.query(f"{span} OFFSET {limit - 1}", bounds)
        until = last[0][0] if last else self.revision
        rows = self.query(
            "SELECT key, value, revision FROM changes WHERE revision > ? AND key >= ? AND key < ?"
            " AND revision <= ? ORDER BY seq",
            (*bounds, until),
        )
        return [Change(*row) for row in rows]

    def _log(self, change: Change) -> None:
        newest = self.query("SELECT seq, total FROM changes ORDER BY seq DESC LIMIT 1")
        seq, total = newest[0] if newest else (0, 0)
        seq, total = seq + 1, total + len(change.value or b"")
        self.execute(
            "INSERT INTO changes VALUES (?, ?, ?, ?, ?)", (seq, change.revision, change.key, change.value, total)
        )
        if seq % PRUNE_EVERY == 0 or len(change.value or b"") > _LARGE_BYTES:
            self._prune(seq, total)

    def _prune(self, seq: int, total: int) -> None:
        """Forget the oldest changes past the bounds, and remember up to which revision."""
        rows = self.query("SELECT seq, total, revision FROM changes ORDER BY seq LIMIT ?", (2 * PRUNE_EVERY,))
        past = [r for s, t, r in rows if s <= seq - self._changes_kept or t < total - CHANGE_BYTES_KEPT]
        # The newest revision is still growing: it is kept until it is past.
        if past and (cut := min(past[-1], self.revision - 1)) > 0:
            self.execute("DELETE FROM changes WHERE revision <= ?", (cut,))
            self.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'compacted'", (cut,))
