"""A label with a bound: so many values have series at once, and one that nothing was heard of makes room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from distroml.observability.metrics import Counter, Gauge, Histogram

MAX_VALUES: Final = 50
TTL_S: Final = 3600.0
HOLD_S: Final = 60.0

Labelled = Counter | Gauge | Histogram


class RecentValues:
    """Of one label, at most `max_values` values have series in `metrics`; one unused for `ttl_s` seconds has none.

    A value keeps its place while it is used at least every `hold_s`; only after that another one may take it. Were the
    newest always let in, more values in use than there are places would reset one another's counts for ever. A value
    that comes back begins with new counts, which Prometheus takes for a restart.
    """

    def __init__(
        self,
        label: str,
        metrics: Sequence[Labelled],
        *,
        max_values: int = MAX_VALUES,
        ttl_s: float = TTL_S,
        hold_s: float = HOLD_S,
    ) -> None:
        self._label, self._metrics = label, metrics
        self._max_values, self._ttl_s, self._hold_s = max_values, ttl_s, hold_s
        self._used: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, value: object) -> bool:
        return value in self._used

    def use(self, value: str, now_s: float) -> bool:
        """Whether `value` may have series, from now on; False where all places are in use."""
        if value not in self._used and len(self._used) >= self._max_values:
            oldest, used_s = next(iter(self._used.items()))
            if now_s - used_s <= self._hold_s:
                return False
            self._drop(oldest)
        self._used[value] = now_s
        self._used.move_to_end(value)
        return True

    def forget(self, now_s: float) -> None:
        """Drop the series of values that were not used for too long."""
        for value, used_s in list(self._used.items()):
            if now_s - used_s <= self._ttl_s:
                return
            self._drop(value)

    def _drop(self, value: str) -> None:
        del self._used[value]
        for metric in self._metrics:
            metric.remove_by_labels({self._label: value})
