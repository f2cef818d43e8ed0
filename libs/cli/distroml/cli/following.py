"""Follow one job on the terminal: its states, its output, its progress, its end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import output
from distroml.cli.client import Plane
from distroml.cli.errors import EXIT_DONE, EXIT_JOB_FAILED
from distroml.events import fresh_id
from distroml.rpc.errors import RemoteError

FINAL = frozenset({jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED})
# How long output may still arrive after the job's end.
DRAIN_S = 3.0


class Follower:
    """Prints a job's changes of state on stderr and its workers' output on stdout."""

    def __init__(self, plane: Plane, job: jobs_pb2.Job, *, json: bool = False) -> None:
        self._plane = plane
        self._job = job
        self._json = json
        self._said = ""
        self._interrupts = 0

    async def to_the_end(self) -> int:
        """Follow until the job is final; returns the exit code. Ctrl-C cancels the job, a second one leaves it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        self._status(f"job {self._job.id} ({self._job.spec.name}) · {self._plane.login_url}")
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
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(logs), DRAIN_S)
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

    def _status(self, text: str) -> None:
        if not self._json:
            output.err.print(f"[distroml] {text}", style="cyan", markup=False)

    async def _print_logs(self) -> None:
        request = jobs_pb2.StreamLogsRequest(job=self._job.id, follow=True)
        while True:
            try:
                async for batch in self._plane.jobs.StreamLogs(request):
                    for line in batch.lines:
                        self._print_line(line)
                return
            except RemoteError as error:
                if error.status.name != "UNAVAILABLE":
                    self._status(f"output is not shown: {error.message}")
                    return
                # Telemetry restarts: what was printed must not come twice, so go on from the end.
                request.tail = -1
                await asyncio.sleep(0.5)

    def _print_line(self, line: jobs_pb2.LogLine) -> None:
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
            if error.status.name not in ("UNAVAILABLE", "CANCELLED", "UNKNOWN") or patience == 0:
                raise
            patience -= 1
            await asyncio.sleep(0.5)
