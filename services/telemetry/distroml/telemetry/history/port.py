"""The port of history. What is in it was committed whole, each event once, with the position it is true at.

History is a projection: jobs, their events, plans and slot time are folded from the log, and all of that can be made
again from it (`anew`). Roll-ups come from samples, which no log has: they are carried over.

Errors: `HistoryError` > `Rebuilt`, `BeingRebuilt`, `NotWritten` > `HistoryAway`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol, Self

import msgspec

from distroml.events import Position, Recorded
from distroml.telemetry.domain.facts import JobFact
from distroml.telemetry.domain.rollup import Rollup
from distroml.telemetry.domain.usage import SlotTime
from distroml.telemetry.domain.view import JobView

STATE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "active": ("running", "admitted", "pausing", "cancelling", "preempting"),
    "waiting": ("queued", "paused"),
    "succeeded": ("succeeded",),
    "failed": ("failed", "cancelled"),
}


MAX_USED: Final = 20_000
"""Sums of slot time that are given at once: some 2 MB in an answer."""


class HistoryError(Exception):
    """Root of what can happen to history."""


class Rebuilt(HistoryError):
    """History does not stand where the caller thinks: it began anew, or another one wrote. Read its cursor again."""


class BeingRebuilt(HistoryError):
    """It is being made anew already, by this process or another one: wait for its end."""


class NotWritten(HistoryError):
    """It could not be written (disk full, say); nothing of the batch is in it. Try again later."""


class HistoryAway(NotWritten):
    """The server behind it gives no answer, or refuses us: the text says why and what to do. Nothing is lost of it."""


class Projected(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded event read, and what it means for its job (None: nothing, or nothing that this release knows)."""

    recorded: Recorded
    job: str
    fact: JobFact | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """An event as the job page shows it; `json` is empty for one that this release cannot read."""

    revision: int
    idx: int
    position: str
    type: str
    stream: str
    version: int
    at_ms: int
    actor: str
    generation: int
    json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBody:
    """The event that chose the plan of a job's newest generation, as stored."""

    generation: int
    type: str
    schema: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which jobs: by states, by project, by text in name, id or project. Empty selects everything."""

    states: Sequence[str] = ()
    project: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobList:
    """Some jobs, newest first, how many the filter selects in all, and the position at which that is so."""

    views: Sequence[JobView]
    total: int
    position: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """Slot time of a group; what it is not grouped by is empty, or 0."""

    job: str
    project: str
    day: int
    slot_ms: int


class Anew(Protocol):
    """A history on its way, in the same place, seen by no reader. Its methods may raise `NotWritten`."""

    async def add(self, events: Sequence[Recorded]) -> None:
        """Fold the next events of the log, at least one: all of them, from its beginning, in order."""
        ...

    async def replace(self) -> None:
        """Readers see this one from now on, whole and durable, with the old one's roll-ups."""
        ...


class History(Protocol):
    """Enter it before use. Every method may raise `HistoryAway`; the writing ones `NotWritten`."""

    @property
    def name(self) -> str:
        """`sqlite` or `postgres`."""
        ...

    async def __aenter__(self) -> Self:
        """Never fails because a server is away: what needs it does, and later works."""
        ...

    async def __aexit__(self, *_: object) -> None: ...

    # ---- the projection

    async def lead(self, who: str, ttl_s: float) -> bool:
        """Take or keep the right to project, for so long; False while another one has it.

        The right saves work. What makes two projectors harmless is that `apply` states where it goes on.
        """
        ...

    async def apply(self, events: Sequence[Projected], *, after: Position | None, cursor: Position) -> set[str]:
        """Fold events, each once by (stream, version), and move the cursor from `after` to `cursor`, together.

        Returns:
            The jobs that changed.

        Raises:
            Rebuilt: the cursor is not at `after`; nothing was folded.
        """
        ...

    async def forget(self) -> None:
        """Drop all that was folded, cursor too; roll-ups stay."""
        ...

    def anew(self) -> AbstractAsyncContextManager[Anew]:
        """Make it again from the log's beginning, for the time of the block; left before `replace`, nothing changes.

        Entering raises `BeingRebuilt` where that is under way: two at once would be two copies of one work.
        """
        ...

    # ---- reading

    async def cursor(self) -> Position | None:
        """Up to where the log is folded."""
        ...

    async def view(self, job: str) -> JobView | None:
        """One job."""
        ...

    async def jobs(
        self, select: Filter, *, before: tuple[int, str] | None = None, offset: int = 0, limit: int = 50
    ) -> JobList:
        """Jobs, newest first, past `before` (submission in milliseconds, id) where that is given."""
        ...

    async def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        ...

    async def events(self, job: str, *, after: tuple[int, int] = (0, -1), limit: int = 200) -> list[EventRow]:
        """The newest events of a job past `after` (revision, index), newest first."""
        ...

    async def plan(self, job: str) -> PlanBody | None:
        """What chose the newest generation's plan."""
        ...

    async def changed_since(self, revision: int) -> set[str]:
        """Jobs with an event of a higher revision; at most 1,000 of them."""
        ...

    async def ended(self, jobs: Sequence[str]) -> list[str]:
        """Those of `jobs` that have ended, the one that ended last first."""
        ...

    async def slot_times(self, job: str) -> list[SlotTime]:
        """What a job held and gave back, oldest first."""
        ...

    async def used(
        self,
        by: Sequence[str],
        *,
        job: str = "",
        project: str = "",
        days: tuple[int, int],
        now_ms: int,
        limit: int = MAX_USED,
    ) -> list[Used]:
        """Slot time of the days from the first to the last, grouped by any of `job`, `project`, `day`.

        What is held still counts until `now_ms`. At most `limit` rows, the largest where there are more.
        """
        ...

    # ---- roll-ups

    async def add_rollups(self, rows: Sequence[Rollup], *, writer: str, sequence: int, now_ms: int) -> None:
        """Put rows together with what is there. A writer numbers its calls from 1: one that comes again changes
        nothing."""
        ...

    async def rollups(self, job: str, metrics: Sequence[str] = (), *, from_ms: int = 0) -> list[Rollup]:
        """Rows of all widths, at most 100,000, the newest of each; no metrics select all."""
        ...

    async def newest(self, jobs: Sequence[str]) -> list[Rollup]:
        """Of each job and metric the newest row of the widest width."""
        ...

    async def drop_rollups(self, older_than_ms: Mapping[int, int]) -> int:
        """Delete rows that began before the moment given for their width; returns how many."""
        ...
