"""How many bytes of output may be shipped: so many a second on average, unused ones saved up to a bound."""

from __future__ import annotations

BURST_S = 4.0


class Allowance:
    """A node's allowance, shared by the readers of all of its workers' files."""

    def __init__(self, bytes_per_s: int, now_s: float) -> None:
        self._rate = bytes_per_s
        self._left = self._rate * BURST_S
        self._at_s = now_s

    def take(self, wanted: int, now_s: float, *, readers: int = 1) -> int:
        """Use up to `wanted` bytes; how many were granted.

        Of several readers that come in turn each gets its share of what is left, so that one that always wants all
        leaves something to the others; who wants less than that gets it whole.
        """
        self._fill(now_s)
        granted = min(wanted, max(0, int(self._left)) // max(1, readers))
        self._left -= granted
        return granted

    def owe(self, spent: int, now_s: float) -> None:
        """Use `spent` bytes, also those that there are not: they are missing later."""
        self._fill(now_s)
        self._left -= spent

    def _fill(self, now_s: float) -> None:
        self._left = min(self._rate * BURST_S, self._left + self._rate * max(0.0, now_s - self._at_s))
        self._at_s = now_s
