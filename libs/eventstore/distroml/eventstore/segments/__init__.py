"""The log in the object store: sealed, hashed, chained segments, read back only where every hash holds."""

from distroml.eventstore.segments.format import Name
from distroml.eventstore.segments.store import SegmentLog

__all__ = ["Name", "SegmentLog"]
