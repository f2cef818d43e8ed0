"""Follow one job on the terminal: its states, its output, its progress, its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import job_compression, job_end, job_plan, output
from distroml.cli.client import Plane
from distroml.cli.errors import EXIT_DONE, EXIT_JOB_FAILED
from distroml.events import fresh_id
from distroml.rpc.errors import RemoteError

FINAL = frozenset({jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED})
# Output travels another way than the state and may arrive after it: it is over once it has been quiet this long
# after the end, longer where nothing came at all, and at the latest after the limit.
QUIET_S, NOTHING_S, LIMIT_S = 1.0, 4.0, 20.0


STEPS_EVERY_S = 5.0
"""Between two lines that say how far a job is."""


@dataclass(slots=True)
class Pace:
    """How far a job is, in words, and how long it will take at the pace since its generation's first sign of a step."""

    generation: int = 0
    first_step: int = 0
    first_at_s: float = 0.0
    told_at_s: float = float("-inf")

    def line(self, job: jobs_pb2.Job, now_s: float) -> str:
        """`step 40 of 200, about 1 min left`; "" where there is nothing new to say yet. `now_s` is monotonic."""
        step, total = job.progress.step, job.progress.total_steps
        if not step or job.state != jobs_pb2.JOB_STATE_RUNNING:
            return ""
        if job.generation != self.generation:
            self.generation, self.first_step, self.first_at_s = job.generation, step, now_s
        if now_s - self.told_at_s < STEPS_EVERY_S:
            return ""
        self.told_at_s = now_s
        text = f"step {step:,} of {total:,}" if total else f"step {step:,}"
        done, spent_s = step - self.first_step, now_s - self.first_at_s
        if total and done > 0 and spent_s > 0:
            text += f", about {output.duration((total - step) * spent_s / done)} left"
        return text


@dataclass(slots=True)
class Heard:
    """How many lines of a job's output came, and when the last one did."""

    lines: int = 0
    last_s: float = 0.0

    def one(self) -> None:
        """Another line came."""
        self.lines += 1
        self.last_s = time.monotonic()

    async def quiet(self, coming: asyncio.Task[None]) -> None:
        """Wait, at the end of the job, until nothing comes any more."""
        began = time.monotonic()
        while not coming.done() and time.monotonic() - began < LIMIT_S:
            quiet_for = time.monotonic() - max(began, self.last_s)
            if quiet_for > (QUIET_S if self.lines else NOTHING_S):
                return
            await asyncio.sleep(0.1)


class Follower:
    """Prints a job's changes of state on stderr and its workers' output on stdout."""

    def __init__(self, plane: Plane, job: jobs_pb2.Job, *, json: bool = False) -> None:
        self._plane = plane
        self._job = job
        self._json = json
        self._said = ""
        self._pace = Pace()
        self._interrupts = 0
        self._heard = Heard()

    async def to_the_end(self) -> int:
        """Follow until the job is final; returns the exit code. Ctrl-C cancels the job, a second one leaves it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        page = f" · {url}" if (url := self._plane.login_url) else ""
        self._status(f"job {self._job.id} ({self._job.spec.name}){page}")
        logs = asyncio.create_task(self._print_logs())
        try:
            async for job in watch(self._plane, self._job.id):
                self._job = job
                self._tell(job)
                if job.state in FINAL:
                    break
                if job.reason == "ExceedsCapacity":
                    self._status(f"{job.message}; cancelling")
                    await self._cancel()
            await self._heard.quiet(logs)
            known = await job_plan.summary(self._plane, self._job.id)
            self._say("note", job_end.untrained(self._job, known))
            self._say("warning", job_compression.unused(self._job, known))
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            logs.cancel()
            await asyncio.gather(logs, return_exceptions=True)
        return EXIT_DONE if self._job.state == jobs_pb2.JOB_STATE_SUCCEEDED else EXIT_JOB_FAILED

    def _tell(self, job: jobs_pb2.Job) -> None:
        if self._json:
            output.print_json_line({"job": output.as_dict(job)})
            return
        state = jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_").lower()
        text = f"{state}{f' ({job.reason})' if job.reason else ''}{f': {job.message}' if job.message else ''}"
        if job.generation > 1 and job.state == jobs_pb2.JOB_STATE_RUNNING:
            text += f" in generation {job.generation}"
        if text != self._said:
            self._said = text
            self._status(text)
        if steps := self._pace.line(job, time.monotonic()):
            self._status(steps)

    def _say(self, kind: str, text: str) -> None:
        if text and self._json:
            output.print_json_line({kind: text})
        elif text:
            self._status(f"{kind}: {text}")

    def _status(self, text: str) -> None:
        if not self._json:
            output.err.print(f"[distroml] {text}", style="cyan", markup=False)

    async def _print_logs(self) -> None:
        request = jobs_pb2.StreamLogsRequest(job=self._job.id, follow=True)
        while True:
            # A stream that begins again begins with the first line: what was printed is passed over.
            skip = self._heard.lines
            try:
                async for batch in self._plane.jobs.StreamLogs(request):
                    for line in batch.lines:
                        if skip:
                            skip -= 1
                        else:
                            self._print_line(line)
                await asyncio.sleep(0.5)
            except RemoteError as error:
                if not error.is_transient:
                    self._status(f"output is not shown: {error.message}")
                    return
                await asyncio.sleep(0.5)

    def _print_line(self, line: jobs_pb2.LogLine) -> None:
        self._heard.one()
        if self._json:
            output.print_json_line({"log": output.as_dict(line)})
        else:
            print(f"[{line.rank}] {line.text}", flush=True)

    def _interrupt(self) -> None:
        self._interrupts += 1
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._status("cancelling the job (Ctrl-C again: leave at once) …")
        task = asyncio.ensure_future(self._cancel())
        task.add_done_callback(lambda done: done.exception())

    async def _cancel(self) -> None:
        with contextlib.suppress(RemoteError):
            await self._plane.jobs.CancelJob(jobs_pb2.CancelJobRequest(job=self._job.id, request_id=fresh_id("req")))


async def to_the_end_of(plane: Plane, job: str, lines: Coroutine[Any, Any, None], heard: Heard) -> None:
    """Let `lines` come until the job is final and they have come; a job that is final already has its lines shown."""

    async def ends() -> None:
        async for answer in watch(plane, job):
            if answer.state in FINAL:
                return

    coming, ending = asyncio.create_task(lines), asyncio.create_task(ends())
    try:
        await asyncio.wait((coming, ending), return_when=asyncio.FIRST_COMPLETED)
        if ending.done() and ending.exception() is None:
            await heard.quiet(coming)
        for task in (coming, ending):
            if task.done():
                task.result()
    finally:
        coming.cancel()
        ending.cancel()
        await asyncio.gather(coming, ending, return_exceptions=True)


async def watch(plane: Plane, job: str) -> AsyncGenerator[jobs_pb2.Job]:
    """The job now and after each change; resumes by position through restarts of the scheduler."""
    after = ""
    patience = 60
    while True:
        try:
            async for answer in plane.jobs.WatchJob(jobs_pb2.WatchJobRequest(job=job, after=after)):
                after, patience = answer.position, 60
                yield answer.job
            return
        except RemoteError as error:
            if not error.is_transient or patience == 0:
                raise
            patience -= 1
            await asyncio.sleep(0.5)
