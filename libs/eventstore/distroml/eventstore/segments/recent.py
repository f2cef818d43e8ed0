"""What was read of segments last."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from distroml.eventstore.segments.format import Name

T = TypeVar("T")


class Recent(Generic[T]):
    """The values used last, by name."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Name, T] = OrderedDict()

    def get(self, name: Name) -> T | None:
        """A segment's value, where it is among them."""
        if name in self._values:
            self._values.move_to_end(name)
        return self._values.get(name)

    def put(self, name: Name, value: T) -> None:
        """Keep it, in place of the one that was used longest ago."""
        self._values[name] = value
        while len(self._values) > self._size:
            self._values.popitem(last=False)
