"""Where an event stands in the log."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in one deployment's log: known after the commit, increasing, with gaps.

    `revision` is the commit's (etcd's revision, SQLite's row id), `index` the event's place inside the commit.
    Positions of different logs do not compare in any useful way; `log` is there so that a cursor of a
    replaced log is noticed instead of silently skipping events.
    """

    log: str
    revision: int
    index: int = 0

    def __str__(self) -> str:
        return f"{self.log}:{self.revision}.{self.index}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read what `str()` wrote.

        Raises:
            ValueError: the text is no position.
        """
        log, _, rest = text.rpartition(":")
        revision, _, index = rest.partition(".")
        if not log or not revision.isascii() or not revision.isdigit() or (index and not index.isdigit()):
            raise ValueError(f"{text!r} is no position; expected LOG:REVISION.INDEX as `distroml events` prints it")
        return cls(log, int(revision), int(index or 0))
