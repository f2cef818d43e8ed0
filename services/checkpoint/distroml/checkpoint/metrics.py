"""Metrics of the catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from distroml.checkpoint.domain import reasons
from distroml.checkpoint.domain.events import Committed, Event, SaveFailed
from distroml.observability import names
from distroml.observability.metrics import counter, histogram

COMMITTED: Final = counter(names.CHECKPOINT_COMMITTED, "Checkpoints committed.")
BYTES: Final = counter(
    names.CHECKPOINT_BYTES, "Bytes of committed checkpoints, by how they got there.", (names.LABEL_HOW,)
)
SAVE_S: Final = histogram(
    names.CHECKPOINT_SAVE_SECONDS,
    "Seconds from the opening of a save to its commit.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
SAVES_FAILED: Final = counter(
    names.CHECKPOINT_FAILED, "Saves that became no checkpoint, by why.", (names.LABEL_REASON,)
)
CORRUPT: Final = counter(names.CHECKPOINT_CORRUPTIONS, "Reports of damaged checkpoints.")
OBJECTS_REMOVED: Final = counter(names.CHECKPOINT_REMOVED, "Objects removed by collection.")

OTHER: Final = "Other"
_REASONS: Final = frozenset(
    {
        reasons.SUPERSEDED,
        reasons.ABANDONED,
        reasons.SAVE_IN_PROGRESS,
        reasons.SHARDS_MISSING,
        reasons.SHARD_DAMAGED,
        reasons.OBJECT_MISSING,
        reasons.FOREIGN_OBJECT,
        reasons.NOT_WHOLE,
        reasons.STORE_FULL,
        reasons.BASE_DAMAGED,
        reasons.RANK_FAILED,
        OTHER,
    }
)

# A series that begins at its first count would hide it from `increase`.
for _reason in _REASONS:
    SAVES_FAILED.labels(_reason)
for _how in ("written", "reused"):
    BYTES.labels(_how)


def count(events: Iterable[Event]) -> None:
    """Count what was decided about saves; a rank's own words for its failure are `Other`."""
    for event in events:
        if isinstance(event, Committed):
            COMMITTED.inc()
            BYTES.labels("written").inc(event.bytes_written)
            BYTES.labels("reused").inc(event.bytes_reused)
            SAVE_S.observe(event.save_s)
        elif isinstance(event, SaveFailed):
            SAVES_FAILED.labels(event.reason if event.reason in _REASONS else OTHER).inc()
