"""Schemes as they were recorded: steps that are made again use what they used the first time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from distroml.runtime.compress.control.model import NONE, Change, Setting


@dataclass(slots=True)
class Record:
    """What is recorded of one training, kept over generations.

    Attributes:
        plan: by which the schemes of step 1 were chosen; empty where none were, or nobody knows.
        generation: the newest one that went by it.
        changes: all so far, of which those of step 1 are beside no compression.
    """

    plan: str = ""
    generation: int = 0
    changes: list[Change] = field(default_factory=list[Change])

    def first(self, plan: str, setting: Setting) -> tuple[str, ...] | None:
        """The schemes of step 1; None where they, or what followed, are of another plan or of other buckets."""
        if not self.plan or self.plan != plan:
            return None
        offered = [{offer.scheme for offer in bucket.offers} for bucket in setting.buckets]
        for change in self.changes:
            if change.bucket >= len(offered) or change.to_scheme not in offered[change.bucket]:
                return None
        return Replay([NONE] * len(offered), self.changes).schemes(1)


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
