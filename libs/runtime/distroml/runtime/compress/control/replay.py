"""Schemes as they were recorded: steps that are made again use what they used the first time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distroml.runtime.compress.control.model import Change


class Replay:
    """The recorded changes of one training. Where two are of the same bucket and step, the later one counts."""

    def __init__(self, first: Sequence[str], changes: Iterable[Change] = ()) -> None:
        """`first` are the schemes by bucket before any change."""
        self._first = tuple(first)
        self._changes = sorted(changes, key=lambda change: change.from_step)

    @property
    def last_step(self) -> int:
        """The last step from which a recorded change holds; 0 for none."""
        return self._changes[-1].from_step if self._changes else 0

    def schemes(self, step: int) -> tuple[str, ...]:
        """The buckets' schemes in `step`."""
        schemes = list(self._first)
        for change in self._changes:
            if change.from_step <= step:
                schemes[change.bucket] = change.to_scheme
        return tuple(schemes)

    def at(self, step: int) -> tuple[Change, ...]:
        """The changes that hold from `step` on."""
        return tuple(change for change in self._changes if change.from_step == step)

    def between(self, after: int, up_to: int) -> tuple[Change, ...]:
        """The changes that hold from a step in `(after, up_to]` on."""
        return tuple(change for change in self._changes if after < change.from_step <= up_to)
