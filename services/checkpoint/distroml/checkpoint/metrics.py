"""Metrics of the catalogue."""

from __future__ import annotations

from distroml.checkpoint.domain.events import Committed
from distroml.observability.metrics import counter, histogram

COMMITTED = counter("distroml_checkpoints_committed_total", "Checkpoints committed.")
BYTES = counter("distroml_checkpoint_bytes_total", "Bytes of committed checkpoints by how they got there.", ["how"])
SAVE_S = histogram(
    "distroml_checkpoint_save_duration_seconds",
    "From the opening of a save to its commit.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
)
SAVES_FAILED = counter("distroml_checkpoint_saves_failed_total", "Saves that became no checkpoint.", ["reason"])
CORRUPT = counter("distroml_checkpoint_corruptions_total", "Reports of damaged checkpoints.")
OBJECTS_REMOVED = counter("distroml_checkpoint_objects_removed_total", "Objects removed by collection.")


def committed(event: Committed) -> None:
    """Count a commit."""
    COMMITTED.inc()
    BYTES.labels("written").inc(event.bytes_written)
    BYTES.labels("reused").inc(event.bytes_reused)
    SAVE_S.observe(event.save_s)
