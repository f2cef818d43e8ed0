"""Keys that commits write beside the state: the job's fence, and the index of running jobs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from distroml.eventstore import Guard, Part
from distroml.rendezvous.domain import Phase, Rendezvous

OPEN_PREFIX: Final = "index/rendezvous/open/"
"""Keys `index/rendezvous/open/<job>` name the jobs whose attempt is not closed; written with the commits."""


def fence_key(job: str) -> str:
    """The key whose value is the newest generation opened, in decimal."""
    return f"fences/{job}"


def extra_parts(before: Rendezvous, after: Rendezvous) -> Iterable[Part]:
    """Keys that a commit from `before` to `after` writes beside the state: the job's fence and its index entry."""
    if after.number != before.number:
        yield Part(fence_key(after.job), str(after.number).encode())
    was, is_ = is_open(before), is_open(after)
    if was != is_:
        yield Part(OPEN_PREFIX + after.job, str(after.attempt).encode() if is_ else None)


def is_open(state: Rendezvous) -> bool:
    """Whether an attempt is under way."""
    return state.phase in (Phase.OPENING, Phase.FORMED)


def fence_guard(job: str, number: int) -> Guard:
    """Holds while `number` is the newest generation opened; 0 for none."""
    key = fence_key(job)
    return Guard(key, value=str(number).encode()) if number else Guard(key, revision=0)
