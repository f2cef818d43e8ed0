"""How many bytes of a collective one rank puts on the wire, and a count of them by axis, level and scheme."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["sum", "gather", "scatter", "reduce_scatter", "broadcast"]


def sent_bytes(kind: Kind, payload_bytes: int, ranks: int) -> int:
    """Bytes that one of `ranks` ranks sends by a flat ring (Patarasuk and Yuan, 2009), or to each other directly.

    Args:
        kind: "sum" is an all-reduce, "gather" an all-gather, "scatter" an all-to-all.
        payload_bytes: what one rank hands in.
        ranks: that take part.
    """
    if ranks <= 1:
        return 0
    share = payload_bytes / ranks * (ranks - 1)
    if kind == "sum":
        return round(2 * share)
    if kind == "gather":
        return payload_bytes * (ranks - 1)
    return payload_bytes if kind == "broadcast" else round(share)


@dataclass(slots=True)
class WireCount:
    """Bytes that this rank sent since `take()`, by (axis, level, scheme)."""

    _sent: Counter[tuple[str, str, str]] = field(default_factory=lambda: Counter[tuple[str, str, str]]())

    def add(self, axis: str, level: str, scheme: str, bytes_: int) -> None:
        """Count `bytes_` more."""
        self._sent[axis, level, scheme] += bytes_

    def take(self) -> dict[tuple[str, str, str], int]:
        """What was sent; begins anew."""
        taken = dict(self._sent)
        self._sent.clear()
        return taken
