"""Which small segments are sealed anew as one, with what comes after them or with one another: pure.

Each seal makes an object, by the age of what waits more often than by its size. So a segment takes those before it
along that are no larger than it is by then, up to a bound. Each is larger than all that are newer, then, or would be
too large together with them: a few small ones are left at the end, and before them segments of half the bound and more
on average. A byte is written anew only into a segment at least twice as large, some dozen times at most.

Those that stayed small (an older relay never merged any, or a burst made a large segment after them) are sealed anew
with one another, once there are enough of them side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

MOST_BYTES: Final = 4 * 1024 * 1024
"""As large as a segment is that is sealed for its size."""

MOST_SEGMENTS: Final = 64
"""At most so many are read to seal one: there may be thousands that an older relay left."""

FEWEST: Final = 8
"""Fewer neighbours than these are not worth being sealed anew."""

_PACKED: Final = 8
"""So many bytes of a segment take one in the store, at the most that is reckoned with."""


def taken(sizes: Iterable[int], size: int, most_bytes: int) -> int:
    """How many segments are sealed together with what follows them.

    Args:
        sizes: of segments before compression, from the newest back.
        size: of what is to be sealed.
        most_bytes: bound of all of it together.
    """
    count = 0
    for one in sizes:
        if one > size or size + one > most_bytes:
            break
        size += one
        count += 1
    return count


def scattered(sizes: Sequence[int], most_bytes: int) -> list[slice]:
    """Neighbours that stayed small, and that together hardly come to more than a bound.

    Args:
        sizes: of all segments in order, as they are stored. What follows the newest takes that along, so it is in none.
        most_bytes: bound of all of them together, before compression.
    """
    most_bytes //= _PACKED
    found: list[slice] = []
    start = total = 0
    for at, size in enumerate(sizes):
        is_newest = at == len(sizes) - 1
        if is_newest or total + size > most_bytes or at - start == MOST_SEGMENTS:
            if at - start >= FEWEST:
                found.append(slice(start, at))
            start, total = at, 0
        total += size
    return found
