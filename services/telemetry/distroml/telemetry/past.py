"""What history answers over the contract: jobs of the past, what they cost, and its own rebuilding."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, contextmanager
from typing import Final

from distroml.api.common.v1.common_pb2 import FailureCategory
from distroml.api.scheduler.v1 import jobs_pb2 as j
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.events import is_name
from distroml.eventstore import EventStore
from distroml.rpc.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from distroml.telemetry.domain.usage import HOUR_S, Price
from distroml.telemetry.domain.view import JobView
from distroml.telemetry.history.port import MAX_USED, BeingRebuilt, Filter, HistoryAway, HistoryError
from distroml.telemetry.history.queries import GROUPS
from distroml.telemetry.history.rebuild import rebuild
from distroml.telemetry.readmodel import ReadModel

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000
MAX_DAYS: Final = 3660
_STATES = {name.removeprefix("JOB_STATE_").lower(): value for name, value in j.JobState.items()}
_CATEGORIES = frozenset(FailureCategory.keys())
_NAMES = {value: name for name, value in _STATES.items()}


@contextmanager
def answering() -> Generator[None]:
    """History that cannot be had becomes an answer that says why."""
    try:
        yield
    except HistoryAway as error:
        raise Unavailable("HistoryAway", str(error)) from error
    except BeingRebuilt as error:
        raise FailedPrecondition("RebuildRuns", str(error)) from error
    except HistoryError as error:
        raise Unavailable("HistoryNotWritten", str(error)) from error


class Past:
    """Answers from history."""

    def __init__(self, model: ReadModel, store: EventStore, *, price: Price | None = None) -> None:
        self._history, self._store, self._price = model.history, store, price

    async def jobs(self, request: t.ListHistoryRequest) -> t.ListHistoryResponse:
        """One page, newest first."""
        if request.page_size < 0:
            raise InvalidArgument([("page_size", f"is {request.page_size}; use 1 to {MAX_PAGE}")])
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        select = Filter(
            states=tuple(_NAMES[s] for s in request.states if s in _NAMES), project=request.project, text=request.text
        )
        before = _read_token(request.page_token) if request.page_token else None
        found = await self._history.jobs(select, before=before, limit=size)
        last = found.views[-1] if len(found.views) == size else None
        return t.ListHistoryResponse(
            jobs=[job_message(view) for view in found.views],
            next_page_token=_write_token(last.submitted_ms, last.job) if last else "",
            position=found.position,
            total=found.total,
        )

    async def job(self, request: t.GetHistoryRequest) -> t.GetHistoryResponse:
        """One job, what it held, and the position."""
        if not is_name(request.job):
            raise InvalidArgument([("job", f"{request.job[:100]!r} is no job id; `distroml jobs --all` lists them")])
        # In this order: a view is at least as new as the position that it is told with.
        cursor = await self._history.cursor()
        view = await self._history.view(request.job)
        if view is None or not view.submitted_ms:
            raise NotFound("JobNotFound", f"history knows no job {request.job!r}", job=request.job)
        times = await self._history.slot_times(request.job)
        return t.GetHistoryResponse(
            job=job_message(view),
            held=[
                t.SlotTime(attempt=p.attempt, slots=p.slots, since_ms=p.since_ms, until_ms=p.until_ms) for p in times
            ],
            position=str(cursor) if cursor else "",
        )

    async def cost(self, request: t.GetCostRequest) -> t.GetCostResponse:
        """Slot time by job, project and day."""
        wrong = [("by", f"{name[:40]!r}: give any of {', '.join(GROUPS)}") for name in request.by if name not in GROUPS]
        if not 0 <= request.from_day <= request.to_day or request.to_day - request.from_day >= MAX_DAYS:
            wrong.append(("from_day", f"the days from the first to the last, at most {MAX_DAYS}"))
        if wrong:
            raise InvalidArgument(wrong)
        cursor = await self._history.cursor()
        rows = await self._history.used(
            list(request.by),
            job=request.job,
            project=request.project,
            days=(request.from_day, request.to_day),
            now_ms=time.time_ns() // 1_000_000,
            limit=MAX_USED + 1,
        )
        if len(rows) > MAX_USED:
            text = f"gives more than {MAX_USED} rows: ask for fewer days, for one project, or by less"
            raise InvalidArgument([("by", text)])
        price = self._price
        return t.GetCostResponse(
            rows=[
                t.CostRow(
                    job=row.job,
                    project=row.project,
                    day=row.day,
                    slot_hours=row.slot_ms / (1000 * HOUR_S),
                    money=price.of(row.slot_ms) if price else "",
                )
                for row in rows
            ],
            price_per_slot_hour=str(price.amount) if price else "",
            currency=price.currency if price else "",
            position=str(cursor) if cursor else "",
        )

    async def rebuild(self) -> AsyncGenerator[t.RebuildProgress]:
        """Progress until it is done."""
        # Whoever asked may go away in the middle: what was built so far is closed at once.
        async with aclosing(rebuild(self._history, self._store)) as steps:
            async for step in steps:
                yield t.RebuildProgress(
                    events=step.events,
                    position=str(step.position) if step.position else "",
                    revision=step.position.revision if step.position else 0,
                    head_revision=step.head.revision,
                    seconds=step.seconds,
                    done=step.done,
                    kept_in=self._history.name,
                )


def job_message(view: JobView) -> j.Job:
    """A job as the scheduler's contract has it, with what history knows: no environment, no slots by name."""
    job = j.Job(
        name=f"projects/{view.project}/jobs/{view.job}",
        id=view.job,
        spec=j.JobSpec(
            name=view.name,
            project=view.project,
            command=view.command,
            workers=j.WorkerRange(min=view.min_workers, max=view.max_workers),
            priority=view.priority,
        ),
        state=_STATES.get(view.state, j.JOB_STATE_UNSPECIFIED),
        reason=view.reason,
        message=view.message,
        generation=view.generation,
        attempt=view.attempt,
        failures=view.failures,
        preemptions=view.preemptions,
        progress=j.Progress(step=view.step, total_steps=view.total_steps),
        category=_category(view.category),
        placement=[j.Placement(node=node) for node in view.nodes],
    )
    for name, at_ms in (
        ("submitted_at", view.submitted_ms),
        ("started_at", view.started_ms),
        ("finished_at", view.finished_ms),
    ):
        if at_ms:
            getattr(job, name).FromMilliseconds(at_ms)
    return job


def _category(name: str) -> FailureCategory.ValueType:
    known = f"FAILURE_CATEGORY_{name.upper()}"
    return FailureCategory.Value(known if known in _CATEGORIES else "FAILURE_CATEGORY_UNSPECIFIED")


def _write_token(submitted_ms: int, job: str) -> str:
    return base64.urlsafe_b64encode(f"{submitted_ms} {job}".encode()).decode()


def _read_token(token: str) -> tuple[int, str]:
    try:
        submitted, _, job = base64.urlsafe_b64decode(token.encode()).decode().partition(" ")
        return int(submitted), job
    except (ValueError, binascii.Error, UnicodeError):
        raise InvalidArgument(
            [("page_token", "was not made by this service; begin the list again without one")]
        ) from None
