"""Which of the stored segments are the log: pure, from their names alone.

A relay that has been replaced may still write a segment, and every segment ever written is a true piece of the log,
read from the outbox without a gap. So there may be several that begin at one revision. The log is the chain that
reaches furthest; what does not belong to it says nothing that the chain does not say.

A segment leaves the store only where a larger one, of all that it holds and more, is there instead. So one that follows
a segment which has left is joined to what lies around its beginning: the two overlap, and say the same where they do,
or the one begins where the other ends.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from distroml.eventstore.port import StoreDamaged
from distroml.eventstore.segments.format import BEGINNING, Name


def chain(names: Iterable[Name]) -> list[Name]:
    """The segments of the log, from its beginning, each following the one before, by rising revisions of their ends.

    Args:
        names: of all that are stored.

    Raises:
        StoreDamaged: the segment that one of them follows is missing, and no other holds what that held.
    """
    every = tuple(names)

    def around(revision: int) -> Name | None:
        return max((name for name in every if name.after < revision <= name.last), key=str, default=None)

    return _walked((), every, around)


def extended(known: Sequence[Name], fresh: Iterable[Name]) -> list[Name]:
    """The segments of the log after more were found, which all sort after the known ones; costs what is new only.

    Raises:
        StoreDamaged: the segment that one of them follows is missing; it may lie beside the known ones, or have left.
    """
    return _walked(known, fresh, lambda _: None)


def _walked(known: Sequence[Name], fresh: Iterable[Name], around: Callable[[int], Name | None]) -> list[Name]:
    """From the one that reaches furthest back to the beginning, or to where a known one is followed."""
    by_link = {(name.last, name.link): name for name in fresh}
    newest = max(by_link.values(), key=str, default=None)
    if newest is None:
        return list(known)
    found = [newest]
    while newest.previous != BEGINNING:
        before = by_link.get((newest.after, newest.previous))
        if before is None:
            kept = known[: bisect_right(known, newest.after, key=lambda name: name.last)]
            if kept and (kept[-1].last, kept[-1].link) == (newest.after, newest.previous):
                return [*kept, *found[::-1]]
            before = around(newest.after)
            if before is None:
                raise StoreDamaged(
                    f"the segment that ends at revision {newest.after} (hash {newest.previous}…) is missing before"
                    f" {newest}; bring the object back from a copy or an older version of the bucket"
                )
            while found and found[-1].last <= before.last:
                found.pop()
        newest = before
        found.append(newest)
    return found[::-1]
