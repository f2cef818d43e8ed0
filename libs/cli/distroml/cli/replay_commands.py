"""`events` and `replay`: the log, the state at any position, and the proof that one folds to the other."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Callable
from datetime import UTC
from typing import Annotated, Any

import typer

from distroml.api.common.v1 import common_pb2, replay_pb2
from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import job_plan, output
from distroml.cli.checkpoint_commands import job_id
from distroml.cli.client import STREAM_OWNERS, Plane, call
from distroml.cli.errors import EXIT_DONE, EXIT_JOB_FAILED, UsageError
from distroml.cli.options import MOST_INT, Data, Follow, Json


def events(
    data: Data,
    job: Annotated[str, typer.Argument(metavar="JOB", help="Only this job's events.")] = "",
    follow: Follow = False,
    after: Annotated[str, typer.Option(help="Only events after this position.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, max=MOST_INT, help="At most this many; 0 for all.")] = 0,
    json: Json = False,
) -> None:
    """Print the event log, oldest first."""

    async def stream(plane: Plane) -> None:
        id_ = await job_id(plane, job) if job else ""
        place = await full_position(plane, after) if after else ""
        request = jobs_pb2.ListEventsRequest(job=id_, after=place, follow=follow, limit=limit)
        async for page in plane.jobs.ListEvents(request):
            for event in page.events:
                if json:
                    output.print_json_line(event_dict(event))
                else:
                    print(event_line(event), flush=follow)

    call(data, stream)


def event_dict(event: common_pb2.Event) -> dict[str, object]:
    """An event as JSON fields, its body decoded."""
    fields = output.as_dict(event)
    fields["data"] = jsonlib.loads(fields.pop("json") or "null")  # type: ignore[arg-type]
    return fields


def event_line(event: common_pb2.Event) -> str:
    """One event on one line: position, time, name, and the body's short fields."""
    body: dict[str, Any] = jsonlib.loads(event.json) if event.json else {}
    body = job_plan.event_words(event.type, body)
    shown = [f"{key}={short(value)}" for key, value in body.items() if key != "at_ms" and value not in ("", 0, [], {})]
    when = event.time.ToDatetime(UTC).strftime("%H:%M:%S.%f")[:-3]
    place = event.position.partition(":")[2] or event.position
    return f"{place:>8}  {when}  {event.type:<42} {' '.join(shown)}"


def short(value: object, width: int = 60) -> str:
    """A value's JSON, cut to `width` characters."""
    text = value if isinstance(value, str) else jsonlib.dumps(value, separators=(",", ":"))
    text = text.replace("\n", "⏎")
    return text if len(text) <= width else text[: width - 1] + "…"


def replay(
    data: Data,
    job: Annotated[str, typer.Argument(metavar="JOB", help="Only this job's streams.")] = "",
    at: Annotated[str, typer.Option("--at", help="Print the state as it was at this position.")] = "",
    verify: Annotated[bool, typer.Option("--verify", help="Fold the whole log and compare with stored state.")] = False,
    mend: Annotated[
        bool, typer.Option("--mend", help="With --verify: write the folded state where it differs.")
    ] = False,
    json: Json = False,
) -> None:
    """Fold the event log: the state at a position, or the proof that the stored state is its fold."""
    if verify == bool(at):
        raise UsageError("give --at POSITION or --verify", hint="positions are the first column of `distroml events`")
    if mend and not verify:
        raise UsageError("--mend goes with --verify")
    if at:
        states = call(data, lambda plane: state_at(plane, job, at))
        _print_states(states, json)
        return
    with output.err.status("folding the log …") as status:

        def tell(streams: int, events: int) -> None:
            status.update(f"folding the log: {events:,} events of {streams:,} streams …")

        answers = call(data, lambda plane: verify_all(plane, job, mend=mend, tell=tell))
    _print_verified(answers, json)
    different = any(a.differences and not a.mended for a in answers)
    raise typer.Exit(EXIT_JOB_FAILED if different else EXIT_DONE)


async def state_at(plane: Plane, job: str, at: str) -> list[replay_pb2.StreamState]:
    """The states of a job's (or, where one service answers for all, the deployment's) streams at a position."""
    if not job:
        raise UsageError("`replay --at` wants a job", hint="distroml replay JOB --at POSITION")
    id_ = await job_id(plane, job)
    position = await full_position(plane, at)
    states: list[replay_pb2.StreamState] = []
    for name in STREAM_OWNERS:
        answer = await plane.replay[name].StateAt(replay_pb2.StateAtRequest(job=id_, position=position))
        states += answer.states
    return states


async def full_position(plane: Plane, text: str) -> str:
    """`12.0`, as `events` prints it, with the log's id in front; a whole position as it is."""
    if ":" in text:
        return text
    page = await plane.jobs.ListJobs(jobs_pb2.ListJobsRequest(page_size=1))
    log = page.position.rpartition(":")[0]
    return f"{log}:{text}"


async def verify_all(
    plane: Plane, job: str = "", *, mend: bool = False, tell: Callable[[int, int], None] = lambda streams, events: None
) -> list[replay_pb2.VerifyResponse]:
    """Every owner's streams folded and compared; `tell` hears how many streams and events are done."""
    id_ = await job_id(plane, job) if job else ""
    answers: list[replay_pb2.VerifyResponse] = []
    events = 0
    for name in STREAM_OWNERS:
        async for answer in plane.replay[name].Verify(replay_pb2.VerifyRequest(job=id_, mend=mend), timeout=600):
            answers.append(answer)
            events += answer.events
            tell(len(answers), events)
    return answers


def _print_states(states: list[replay_pb2.StreamState], json: bool) -> None:
    if json:
        output.print_json([{**output.as_dict(s), "state": jsonlib.loads(s.json or "null")} for s in states])
        return
    for state in states:
        output.out.print(f"[bold]{state.stream}[/] at version {state.version} ({state.position})")
        print(jsonlib.dumps(jsonlib.loads(state.json or "null"), indent=2, ensure_ascii=False))


def _print_verified(answers: list[replay_pb2.VerifyResponse], json: bool) -> None:
    if json:
        output.print_json([output.as_dict(answer) for answer in answers])
        return
    count = sum(answer.events for answer in answers)
    wrong = [answer for answer in answers if answer.differences]
    for answer in wrong:
        output.out.print(f"[red]{answer.stream}[/] (version {answer.version}){' mended' if answer.mended else ''}:")
        for one in answer.differences:
            output.out.print(f"  {one.path}: log says {one.folded}, stored is {one.stored}", markup=False)
    if wrong:
        output.out.print(f"{len(wrong)} of {len(answers)} streams differ from their log")
    else:
        output.out.print(f"replay verified: {count} events of {len(answers)} streams fold to the stored state")
