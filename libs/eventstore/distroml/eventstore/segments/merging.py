"""Which small segments are sealed anew together with what comes after them: pure.

Each seal makes an object, by the age of what waits more often than by its size. So a segment takes those before it
along that are no larger than it is by then, up to a bound. Each is larger than all that are newer, then, or would be
too large together with them: a few small ones are left at the end, and before them segments of half the bound and more
on average. A byte is written anew only into a segment at least twice as large, some dozen times at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

MOST_BYTES: Final = 4 * 1024 * 1024
"""As large as a segment is that is sealed for its size."""

MOST_SEGMENTS: Final = 64
"""At most so many are read to seal one: there may be thousands that an older relay left."""


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
