"""The port over any database that runs the statements: what is left to a back end is how a transaction is run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from distroml.events import Position
from distroml.telemetry.domain.rollup import Rollup
from distroml.telemetry.domain.usage import SlotTime
from distroml.telemetry.domain.view import JobView
from distroml.telemetry.history import folding, queries
from distroml.telemetry.history.db import Db
from distroml.telemetry.history.port import MAX_USED, EventRow, Filter, JobList, PlanBody, Projected, Used

R = TypeVar("R")


class SqlHistory(ABC):
    """`History`, but for its life, its leader, and how it is replaced."""

    locked = ""
    """What keeps other writers from a row that a statement reads."""

    def __init__(self, *, max_events: int) -> None:
        self.max_events = max_events
        self._folder = folding.Folder(max_events=max_events)

    @abstractmethod
    async def _write(self, change: Callable[[Db], R]) -> R:
        """Run `change` in a transaction; calls run one after another. Resets the folder when it did not commit."""

    @abstractmethod
    async def _read(self, query: Callable[[Db], R]) -> R:
        """Run `query` on one state of what was committed."""

    async def apply(self, events: Sequence[Projected], *, after: Position | None, cursor: Position) -> set[str]:
        """See the port."""
        return await self._write(
            lambda db: self._folder.apply(db, events, after=after, cursor=cursor, locked=self.locked)
        )

    async def forget(self) -> None:
        """See the port."""
        await self._write(folding.forget)

    async def cursor(self) -> Position | None:
        """See the port."""
        return await self._read(queries.cursor)

    async def view(self, job: str) -> JobView | None:
        """See the port."""
        return await self._read(lambda db: queries.view(db, job))

    async def jobs(
        self, select: Filter, *, before: tuple[int, str] | None = None, offset: int = 0, limit: int = 50
    ) -> JobList:
        """See the port."""
        return await self._read(lambda db: queries.jobs(db, select, before, offset, limit))

    async def counts(self) -> dict[str, int]:
        """See the port."""
        return await self._read(queries.counts)

    async def events(self, job: str, *, after: tuple[int, int] = (0, -1), limit: int = 200) -> list[EventRow]:
        """See the port."""
        return await self._read(lambda db: queries.events(db, job, after, limit))

    async def plan(self, job: str) -> PlanBody | None:
        """See the port."""
        return await self._read(lambda db: queries.plan(db, job))

    async def changed_since(self, revision: int) -> set[str]:
        """See the port."""
        return await self._read(lambda db: queries.changed_since(db, revision))

    async def ended(self, jobs: Sequence[str]) -> list[str]:
        """See the port."""
        return await self._read(lambda db: queries.ended(db, jobs))

    async def slot_times(self, job: str) -> list[SlotTime]:
        """See the port."""
        return await self._read(lambda db: queries.slot_times(db, job))

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
        """See the port."""
        return await self._read(lambda db: queries.used(db, by, job, project, days, now_ms, limit))

    async def add_rollups(self, rows: Sequence[Rollup], *, writer: str, sequence: int, now_ms: int) -> None:
        """See the port."""
        await self._write(lambda db: queries.add_rollups(db, rows, writer, sequence, now_ms))

    async def rollups(self, job: str, metrics: Sequence[str] = (), *, from_ms: int = 0) -> list[Rollup]:
        """See the port."""
        return await self._read(lambda db: queries.rollups(db, job, metrics, from_ms))

    async def newest(self, jobs: Sequence[str]) -> list[Rollup]:
        """See the port."""
        return await self._read(lambda db: queries.newest(db, jobs))

    async def drop_rollups(self, older_than_ms: Mapping[int, int]) -> int:
        """See the port."""
        return await self._write(lambda db: queries.drop_rollups(db, older_than_ms))
