"""How far the log is behind what was committed, by the relay's own clock alone: pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lag:
    """Since when the log has been behind.

    Attributes:
        mark: a committed revision that the log did not have yet when it was looked at.
        since_s: the monotonic time of that look.
    """

    mark: int = 0
    since_s: float = 0.0

    def looked(self, head: int, published: int, now_s: float) -> Lag:
        """After a look that found commits up to `head`, and those up to `published` in the log.

        The mark is moved on only once the log has it, so that a log which never catches up with its newest commit, and
        keeps moving, is told from one that stands still.
        """
        return self if published < self.mark else Lag(head if published < head else 0, now_s)

    def seconds(self, now_s: float) -> float:
        """For how long a commit has waited at the least; 0 where the log had all at the last look."""
        return max(0.0, now_s - self.since_s) if self.mark else 0.0
