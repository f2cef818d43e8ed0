"""Which of the stored segments are the log: pure, from their names alone.

A relay that has been replaced may still write a segment, and every segment ever written is a true piece of the log,
read from the outbox without a gap. So there may be several that begin at one revision. The log is the chain that
reaches furthest; what does not belong to it says nothing that the chain does not say.
"""

from __future__ import annotations

from collections.abc import Iterable

from distroml.eventstore.port import StoreDamaged
from distroml.eventstore.segments.format import BEGINNING, Name


def chain(names: Iterable[Name]) -> list[Name]:
    """The segments of the log, from its beginning, each following the one before.

    Raises:
        StoreDamaged: the segment that one of them follows is missing.
    """
    by_link: dict[tuple[int, str], Name] = {}
    newest: Name | None = None
    for name in sorted(names, key=str):
        by_link[name.last, name.link] = name
        newest = name
    found: list[Name] = []
    while newest is not None:
        found.append(newest)
        if newest.previous == BEGINNING:
            break
        before = by_link.get((newest.after, newest.previous))
        if before is None:
            raise StoreDamaged(
                f"the segment that ends at revision {newest.after} (hash {newest.previous}…) is missing before"
                f" {newest}; bring the object back from a copy or an older version of the bucket"
            )
        newest = before
    return found[::-1]
