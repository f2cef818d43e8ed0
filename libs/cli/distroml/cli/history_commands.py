"""`cost` and `history …`: what jobs held and what that costs; history made anew from the log."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2 as t
from distroml.cli import output
from distroml.cli.client import Plane, call
from distroml.cli.errors import CliError, UsageError
from distroml.cli.options import Data, Json
from distroml.rpc.errors import RemoteError

app = typer.Typer(no_args_is_help=True, help="What was: kept for lists, charts and costs, made from the event log.")

_EPOCH = date(1970, 1, 1)


class By(StrEnum):
    """What slot time is added up by."""

    JOB = "job"
    PROJECT = "project"
    DAY = "day"


def cost(
    data: Data,
    by: Annotated[list[By] | None, typer.Option("--by", help="Add up by these; repeatable.")] = None,
    job: Annotated[str, typer.Option(help="Only this job, by its id.")] = "",
    project: Annotated[str, typer.Option(help="Only this project.")] = "",
    days: Annotated[int, typer.Option(min=1, max=3660, help="The last so many days (UTC), today too.")] = 30,
    until: Annotated[str, typer.Option(metavar="YYYY-MM-DD", help="The last day, instead of today.")] = "",
    json: Json = False,
) -> None:
    """Slot-hours by job, project and day, and their money where DISTROML_SLOT_HOUR_PRICE gives telemetry a price."""
    last = _day(until)
    groups = list(dict.fromkeys(by or [By.JOB]))
    request = t.GetCostRequest(by=groups, job=job, project=project, from_day=max(0, last - days + 1), to_day=last)

    async def ask(plane: Plane) -> t.GetCostResponse:
        return await plane.telemetry.GetCost(request)

    answer = call(data, ask)
    if json:
        rows = [{**output.as_dict(row), "day": _text(row.day) if By.DAY in groups else ""} for row in answer.rows]
        output.print_json({**output.as_dict(answer), "rows": rows, "from": _text(request.from_day), "to": _text(last)})
        return
    priced = bool(answer.currency)
    output.table(
        (*(group.value.upper() for group in groups), "SLOT-HOURS", *([answer.currency] if priced else [])),
        [
            (
                *(_text(row.day) if group is By.DAY else str(getattr(row, group.value)) for group in groups),
                f"{row.slot_hours:.3f}",
                *([row.money] if priced else []),
            )
            for row in answer.rows
        ],
        empty=f"no slots were held from {_text(request.from_day)} to {_text(last)}",
    )


def _day(text: str) -> int:
    try:
        day = date.fromisoformat(text) if text else datetime.now(UTC).date()
    except ValueError:
        raise UsageError(f"--until {text!r} is no day", hint="give it as YYYY-MM-DD") from None
    return (day - _EPOCH).days


def _text(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).isoformat()


@app.command()
def rebuild(data: Data, json: Json = False) -> None:
    """Make history anew from the event log; the old one answers until the new one takes its place."""

    async def follow(plane: Plane) -> t.RebuildProgress:
        last = t.RebuildProgress()
        columns = (TextColumn("{task.completed:,.0f} events"), BarColumn(), TextColumn("{task.fields[rate]}/s"))
        with Progress(*columns, TimeRemainingColumn(), console=output.err, transient=True) as shown:
            task = shown.add_task("rebuild", total=None, rate="")
            async for last in plane.telemetry.RebuildHistory(t.RebuildHistoryRequest()):
                # Positions have gaps: how many events there are is an estimate until the end.
                done = last.revision / last.head_revision if last.head_revision else 1.0
                total = last.events / done if done else None
                rate = f"{last.events / last.seconds:,.0f}" if last.seconds else ""
                shown.update(task, completed=last.events, total=total, rate=rate)
                if json:
                    output.print_json_line(output.as_dict(last))
        return last

    last = call(data, follow)
    if not last.done:
        raise CliError("the rebuild ended early; the old history is still in place", hint="see `distroml doctor`")
    if not json:
        rate = last.events / last.seconds if last.seconds else 0.0
        output.out.print(
            f"history is new: {last.events:,} events in {output.duration(last.seconds)} ({rate:,.0f} events/s), "
            f"up to {last.position}, in {last.kept_in}"
        )


async def past_jobs(plane: Plane, states: Sequence[jobs_pb2.JobState.ValueType], limit: int) -> t.ListHistoryResponse:
    """The newest jobs of history, at most `limit`; none, with the reason on stderr, where telemetry cannot say."""
    found = t.ListHistoryResponse()
    try:
        while len(found.jobs) < limit:
            page = await plane.telemetry.ListHistory(
                t.ListHistoryRequest(
                    states=states, page_size=min(1000, limit - len(found.jobs)), page_token=found.next_page_token
                )
            )
            found.jobs.extend(page.jobs)
            found.next_page_token, found.position = page.next_page_token, page.position
            if not page.next_page_token:
                break
    except RemoteError as error:
        output.err.print(f"older jobs are missing: {error.message}", markup=False)
    return found


async def past_job(plane: Plane, job: str) -> t.GetHistoryResponse | None:
    """A job of history by its id; None where it knows none, or cannot say."""
    with contextlib.suppress(RemoteError):
        return await plane.telemetry.GetHistory(t.GetHistoryRequest(job=job))
    return None
