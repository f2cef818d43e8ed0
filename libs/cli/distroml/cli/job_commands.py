"""`jobs` and `job …`: look at jobs and steer them."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from grpc import StatusCode

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.cli import job_compression, job_end, job_plan, log_search, output
from distroml.cli.client import Plane, call
from distroml.cli.errors import EXIT_DONE, EXIT_JOB_FAILED, UsageError
from distroml.cli.following import FINAL, Heard, to_the_end_of, watch
from distroml.cli.history_commands import past_job, past_jobs
from distroml.cli.objects import open_objects
from distroml.cli.options import MOST_INT, Data, Follow, JobName, Json
from distroml.cli.spec import parse_workers
from distroml.events import fresh_id
from distroml.observability import trace
from distroml.rpc.errors import RemoteError

app = typer.Typer(no_args_is_help=True, help="Look at one job and steer it.")


def jobs(
    data: Data,
    all_: Annotated[bool, typer.Option("--all", "-a", help="Finished jobs too, the oldest from history.")] = False,
    finished: Annotated[bool, typer.Option("--finished", help="Only finished jobs.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most this many.")] = 1000,
    json: Json = False,
) -> None:
    """List jobs, newest first."""
    if all_ and finished:
        raise UsageError("--all and --finished are two lists", hint="give one of them")
    old = all_ or finished
    states = tuple(s for s in jobs_pb2.JobState.values() if s and (all_ or (s in FINAL) == finished))

    found = call(data, lambda plane: listed(plane, states, limit, history=old))
    if json:
        output.print_json([output.as_dict(job) for job in found])
        return
    output.table(
        ("JOB", "NAME", "STATE", "REASON", "WORKERS", "STEP", "AGE"),
        (
            (
                job.id,
                job.spec.name,
                output.state_text(jobs_pb2.JobState.Name(job.state)),
                job.reason,
                workers_text(job),
                progress_text(job),
                output.age(job.submitted_at),
            )
            for job in found
        ),
        empty="no jobs; start one with `distroml run script.py`" if old else "no unfinished jobs (--all shows all)",
    )


async def listed(
    plane: Plane, states: Sequence[jobs_pb2.JobState.ValueType], limit: int, *, history: bool
) -> list[jobs_pb2.Job]:
    """The newest jobs in these states: the scheduler's, and where asked those that only history has.

    A job's `position` says at which it is true.
    """
    found: list[jobs_pb2.Job] = []
    token = ""
    while len(found) < limit:
        page = await plane.jobs.ListJobs(
            jobs_pb2.ListJobsRequest(states=states, page_size=min(1000, limit - len(found)), page_token=token)
        )
        found += page.jobs
        token = page.next_page_token
        if not token:
            break
    if history and len(found) < limit:
        # The scheduler keeps its newest finished jobs.
        known = {job.id for job in found}
        past = await past_jobs(plane, [state for state in states if state in FINAL], limit)
        for job in past.jobs:
            job.position = past.position
        found += [job for job in past.jobs if job.id not in known]
        found.sort(key=lambda job: (-job.submitted_at.ToMilliseconds(), job.id))
    return found[:limit]


def workers_text(job: jobs_pb2.Job) -> str:
    """`2/2..4`: held slots and what was asked for."""
    asked = job.spec.workers
    held = sum(len(place.slots) for place in job.placement)
    return f"{held}/{asked.min}" if asked.min == asked.max else f"{held}/{asked.min}..{asked.max}"


def progress_text(job: jobs_pb2.Job) -> str:
    """`120/400`, or empty before the first step."""
    done = job.progress
    return f"{done.step}/{done.total_steps}" if done.total_steps else str(done.step or "")


@app.command()
def show(job: JobName, data: Data, json: Json = False) -> None:
    """What the job is, where it stands, and why."""

    async def ask(plane: Plane) -> tuple[jobs_pb2.Job, bool, telemetry_pb2.JobSummary]:
        found, recalled = await found_or_recalled(plane, job)
        return found, recalled, await job_plan.summary(plane, found.id)

    answer, from_history, summary = call(data, ask)
    # The shell's own word first: it may know another way to Jaeger than the control plane.
    trace_url = trace.page_url(os.environ.get("DISTROML_JAEGER_UI", ""), answer.trace_id) or summary.trace_url
    if json:
        links = {"trace_url": trace_url, "grafana_url": summary.grafana_url}
        output.print_json(output.as_dict(answer) | {name: url for name, url in links.items() if url})
        return
    by = f" by {answer.actor}" if answer.actor else ""
    rows = [
        ("job", answer.id),
        ("name", answer.spec.name),
        ("state", output.state_text(jobs_pb2.JobState.Name(answer.state))),
        ("reason", f"{answer.reason} {answer.message}".strip()),
        ("command", " ".join(answer.spec.command)),
        ("workers", workers_text(answer)),
        ("backend", answer.spec.backend),
        ("compress", answer.spec.compress),
        ("placement", ", ".join(f"{p.node} ({', '.join(p.slots)})" for p in answer.placement)),
        ("step", progress_text(answer)),
        ("generation", str(answer.generation or "")),
        ("attempt", str(answer.attempt or "")),
        ("failures", f"{answer.failures} (and {answer.preemptions} preemptions)"),
        ("priority", str(answer.spec.priority)),
        ("submitted", f"{answer.submitted_at.ToDatetime(UTC):%Y-%m-%d %H:%M:%S} UTC{by}"),
        ("version", str(answer.version or "")),
        ("trace", trace_url or answer.trace_id),
        ("metrics", summary.grafana_url),
        ("source", f"history, true at {answer.position}" if from_history else ""),
    ]
    for name, text in rows:
        if text:
            output.out.print(f"{name:>11}  {text if name == 'state' else output.escape(text)}")


@app.command()
def logs(
    job: JobName,
    data: Data,
    follow: Follow = False,
    rank: Annotated[
        list[int] | None, typer.Option("--rank", "-r", min=0, max=MOST_INT, help="Only this rank; repeatable.")
    ] = None,
    tail: Annotated[
        int | None,
        typer.Option("--tail", "-n", min=0, max=MOST_INT, help="Only the last N lines; 0 for all.", show_default=False),
    ] = None,
    search: Annotated[
        str, typer.Option("--search", "-s", help='Only lines with these words, in any case; "in quotes" as they stand.')
    ] = "",
    since: Annotated[str, typer.Option(help="Only lines since then: 10m, 2h, 1d ago, or 2026-11-26T08:00.")] = "",
    until: Annotated[str, typer.Option(help="Only lines before then.")] = "",
    level: Annotated[str, typer.Option(help="Only lines of this level and graver ones, such as warning.")] = "",
    json: Json = False,
) -> None:
    """What the workers wrote. Searching looks at all that is kept and shows the newest 200 matches (-n for more).

    Following ends with the job.
    """

    heard = Heard()

    def show(line: jobs_pb2.LogLine | telemetry_pb2.LogRecord) -> None:
        heard.one()
        if json:
            output.print_json_line(output.as_dict(line))
        else:
            print(f"[{line.rank}] {line.text}")

    async def stream(plane: Plane) -> None:
        request = jobs_pb2.StreamLogsRequest(job=job, ranks=rank or [], follow=follow, tail=tail or 0)
        async for batch in plane.jobs.StreamLogs(request):
            for line in batch.lines:
                show(line)
            sys.stdout.flush()

    if not (search or since or until or level):
        call(data, lambda plane: to_the_end_of(plane, job, stream(plane), heard) if follow else stream(plane))
        return
    if follow:
        raise UsageError("a search does not follow", hint="leave --follow out, or search without it")
    request = telemetry_pb2.SearchLogsRequest(
        text=search,
        ranks=rank or [],
        since_ms=log_search.moment_ms(since, "--since") if since else 0,
        until_ms=log_search.moment_ms(until, "--until") if until else 0,
        level=level.lower(),
    )

    async def find(plane: Plane) -> None:
        request.job = (await _get(plane, job)).id
        async for line in log_search.search(plane, request, log_search.NEWEST if tail is None else tail):
            show(line)

    call(data, find)


@app.command(name="watch")
def watch_job(job: JobName, data: Data, json: Json = False) -> None:
    """Follow the job's state to its end; exits 1 if it fails."""

    async def follow(plane: Plane) -> int:
        last = ""
        # Who watches is patient with a scheduler that restarts; one that is not there at all is told at once.
        await _get(plane, job)
        async for answer in watch(plane, job):
            if json:
                output.print_json_line(output.as_dict(answer))
            else:
                step = progress_text(answer)
                line = output.job_text(answer.state, answer.reason, answer.message) + f" · step {step}" * bool(step)
                if line != last:
                    output.out.print(line)
                last = line
            if answer.state in FINAL:
                return EXIT_DONE if answer.state == jobs_pb2.JOB_STATE_SUCCEEDED else EXIT_JOB_FAILED
        return EXIT_JOB_FAILED

    raise typer.Exit(call(data, follow))


@app.command()
def explain(
    job: JobName,
    data: Data,
    plans: Annotated[
        bool, typer.Option("--plans", help="Every plan that it chose its parallel plan among, with what they lack.")
    ] = False,
    json: Json = False,
) -> None:
    """Why the job is where it is, and what to do about it."""

    async def ask(plane: Plane) -> tuple[jobs_pb2.ExplainJobResponse, telemetry_pb2.JobSummary]:
        answer = await plane.jobs.ExplainJob(jobs_pb2.ExplainJobRequest(job=job))
        return answer, await job_plan.summary(plane, answer.job.id)

    answer, known = call(data, ask)
    chosen = list(known.plans)
    noted, unused = job_end.untrained(answer.job, known), job_compression.unused(answer.job, known)
    # Generations share their plan's object; what is known of older ones has no hash.
    others = job_plan.others(open_objects(data), chosen[-1]) if plans and chosen else []
    if json:
        told = {**output.as_dict(answer), "plans": [output.as_dict(plan) for plan in chosen]}
        told["schemes"] = [output.as_dict(change) for change in known.schemes]
        told["held"] = [output.as_dict(one) for one in known.held]
        told |= {"advice": output.as_dict(known.advice)} if known.HasField("advice") else {}
        told |= ({"note": noted} if noted else {}) | ({"warning": unused} if unused else {})
        output.print_json(told | ({"alternatives": [msgspec.to_builtins(one) for one in others]} if plans else {}))
        return
    output.out.print(output.job_text(answer.job.state, answer.reason, answer.message))
    output.out.print(f"slots: {answer.free_slots} free of {answer.total_slots}")
    for step in answer.next_steps:
        output.out.print(f"  → {step}", markup=False)
    for line in job_plan.lines(chosen[-1], others=not plans) if chosen else ():
        output.out.print(line, markup=False)
    for line in (*job_compression.lines(known), *(text for text in (noted, unused) if text)):
        output.out.print(line, markup=False)
    if plans:
        output.out.print(f"{len(others)} other plans were possible:" if others else "no other plans are kept")
        for line in (line for one in others for line in one.lines()):
            output.out.print(line, markup=False)
    if answer.history:
        output.out.print("how it got here:")
        for line in answer.history:
            output.out.print(f"  {line}", markup=False)


@app.command()
def cancel(
    job: JobName,
    data: Data,
    why: Annotated[str, typer.Option(help="Recorded with the event.")] = "",
    json: Json = False,
) -> None:
    """End the job for good."""
    _steer(
        data, json, lambda p: p.jobs.CancelJob(jobs_pb2.CancelJobRequest(job=job, request_id=fresh_id("req"), why=why))
    )


@app.command()
def pause(job: JobName, data: Data, json: Json = False) -> None:
    """Save a checkpoint, free the slots, keep the job."""
    _steer(data, json, lambda p: p.jobs.PauseJob(jobs_pb2.PauseJobRequest(job=job, request_id=fresh_id("req"))))


@app.command()
def resume(job: JobName, data: Data, json: Json = False) -> None:
    """Put a paused job back into the queue."""
    _steer(data, json, lambda p: p.jobs.ResumeJob(jobs_pb2.ResumeJobRequest(job=job, request_id=fresh_id("req"))))


@app.command()
def resize(
    job: JobName,
    workers: Annotated[str, typer.Argument(help="New number of workers, or a range such as 2..8.")],
    data: Data,
    json: Json = False,
) -> None:
    """Change the number of workers, while running too."""
    low, high = parse_workers(workers, "WORKERS")
    request = jobs_pb2.ResizeJobRequest(job=job, request_id=fresh_id("req"), min_workers=low, max_workers=high)
    _steer(data, json, lambda p: p.jobs.ResizeJob(request))


@app.command()
def priority(
    job: JobName,
    value: Annotated[int, typer.Argument(min=-1_000_000, max=1_000_000, help="Higher goes first.")],
    data: Data,
    json: Json = False,
) -> None:
    """Change the job's place in the queue."""
    request = jobs_pb2.SetPriorityRequest(job=job, request_id=fresh_id("req"), priority=value)
    _steer(data, json, lambda p: p.jobs.SetPriority(request))


async def _get(plane: Plane, job: str) -> jobs_pb2.Job:
    return await plane.jobs.GetJob(jobs_pb2.GetJobRequest(job=job))


async def found_or_recalled(plane: Plane, job: str) -> tuple[jobs_pb2.Job, bool]:
    """The scheduler's word, or history's on a job that it has forgotten; and whether it is history's."""
    try:
        return await _get(plane, job), False
    except RemoteError as error:
        *_, project, _, id_ = ("", "", *job.split("/"))
        if error.status is not StatusCode.NOT_FOUND or (past := await past_job(plane, id_)) is None:
            raise
        if project not in ("", past.job.spec.project):
            raise
    past.job.position = past.position
    return past.job, True


def _steer(data: Path, json: bool, action: Callable[[Plane], Awaitable[jobs_pb2.Job]]) -> None:
    answer = call(data, action)
    if json:
        output.print_json(output.as_dict(answer))
    else:
        state = output.state_text(jobs_pb2.JobState.Name(answer.state))
        output.out.print(f"{answer.id} is {state}{f' ({answer.reason})' if answer.reason else ''}")
