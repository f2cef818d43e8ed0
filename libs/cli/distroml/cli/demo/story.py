"""The course of the demo against a running control plane."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.cli.client import Plane
from distroml.cli.demo.report import Facts
from distroml.cli.demo.view import View
from distroml.cli.errors import CliError
from distroml.cli.following import FINAL, watch
from distroml.cli.replay_commands import verify_all
from distroml.cli.spec import Request, upload
from distroml.events import fresh_id
from distroml.rpc.errors import RemoteError

POLL_S = 0.3


@dataclass(slots=True)
class Story:
    """One run of the demo.

    Attributes:
        kill_at: fraction of the steps after which a worker is killed, once a checkpoint is committed.
    """

    plane: Plane
    view: View
    out: Path
    kill_at: float
    began: float = field(default_factory=time.monotonic)
    job: str = ""
    killed_worker: str = ""
    killed_at_step: int = 0
    killed_at_ms: int = 0

    async def tell(self, request: Request) -> Facts:
        """Submit, watch, kill, watch, verify; returns what happened."""
        bundle = await upload(self.plane, request.root)
        spec = jobs_pb2.JobSpec()
        spec.CopyFrom(request.spec)
        spec.bundle = bundle.sha256
        job = await self.plane.jobs.SubmitJob(jobs_pb2.SubmitJobRequest(spec=spec, request_id=fresh_id("req")))
        self.job = job.id
        self.view.say(
            f"submitted [bold]{job.id}[/] on {spec.workers.min} workers ({bundle.size_bytes / 1e3:.0f} kB of code)"
        )
        narrator = asyncio.create_task(self._narrate())
        try:
            state = await self._to_the_end()
        finally:
            narrator.cancel()
            await asyncio.gather(narrator, return_exceptions=True)
        return await self._facts(state)

    async def _to_the_end(self) -> str:
        finished = asyncio.create_task(self._final_state())
        while not finished.done():
            await asyncio.wait({finished}, timeout=POLL_S)
            with contextlib.suppress(RemoteError):
                summary = await self.plane.telemetry.GetJobSummary(telemetry_pb2.GetJobSummaryRequest(job=self.job))
                self.view.progress(summary)
                # After the last step nothing is left to recover for.
                due = self.kill_at * summary.total_steps <= summary.step < summary.total_steps
                if due and summary.checkpoints and not self.killed_worker and not finished.done():
                    await self._kill(summary.step)
        return finished.result()

    async def _final_state(self) -> str:
        async for job in watch(self.plane, self.job):
            if job.state in FINAL:
                if job.state == jobs_pb2.JOB_STATE_FAILED:
                    self.view.say(f"[red]the job failed[/]: {job.reason} {job.message}")
                return jobs_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_")
        raise CliError("the watch on the job ended before the job did")

    async def _kill(self, step: int) -> None:
        started = [body for type_, body in await self._events() if type_ == "rendezvous.worker.Started"]
        victim = next(body for body in reversed(started) if int(body.get("rank", 0)) == 1)
        at_ms = time.time_ns() // 1_000_000
        try:
            os.kill(int(victim["pid"]), signal.SIGKILL)
        except ProcessLookupError:  # it ended by itself since; what is not killed here the report says
            return
        self.killed_worker, self.killed_at_step, self.killed_at_ms = str(victim["worker"]), step, at_ms
        self.view.say(f"[bold red]step {step}: kill -9[/] of rank 1 (process {victim['pid']}, {victim['worker']})")

    async def _narrate(self) -> None:
        """Say what the log says, as it happens."""
        request = jobs_pb2.ListEventsRequest(job=self.job, follow=True)
        while True:
            with contextlib.suppress(RemoteError):
                async for page in self.plane.jobs.ListEvents(request):
                    for event in page.events:
                        if text := sentence(event.type, json.loads(event.json or "{}")):
                            self.view.say(text)
                        request.after = event.position
            await asyncio.sleep(0.5)

    async def _events(self) -> list[tuple[str, dict[str, Any]]]:
        found: list[tuple[str, dict[str, Any]]] = []
        async for page in self.plane.jobs.ListEvents(jobs_pb2.ListEventsRequest(job=self.job)):
            found += [(event.type, json.loads(event.json or "{}")) for event in page.events]
        return found

    async def _facts(self, state: str) -> Facts:
        self.view.say("replaying the event log …")
        verified = await verify_all(self.plane)
        request = telemetry_pb2.QuerySeriesRequest(job=self.job, names=["loss", "tokens_per_s"], max_points=5000)
        series = {(s.name, s.rank): s.points for s in (await self.plane.telemetry.QuerySeries(request)).series}
        losses = [point for (name, rank), points in series.items() if name == "loss" and rank == 0 for point in points]
        rates = [
            p.mean for (name, rank), points in series.items() if name == "tokens_per_s" and rank == 0 for p in points
        ]
        after = [p.at_ms for p in losses if p.at_ms > self.killed_at_ms and p.generation >= 2]
        file = self.out / "result.json"
        return Facts(
            job=self.job,
            job_state=state,
            events=await self._events(),
            result=json.loads(file.read_text("utf-8")) if file.exists() else {},
            killed_worker=self.killed_worker,
            killed_at_step=self.killed_at_step,
            killed_at_ms=self.killed_at_ms,
            first_loss=losses[0].mean if losses else 0.0,
            tokens_per_s=statistics.median(rates) if rates else 0.0,
            first_step_after_kill_ms=min(after, default=0),
            verified_streams=len(verified),
            verified_events=sum(answer.events for answer in verified),
            differences=sum(len(answer.differences) for answer in verified),
            seconds=time.monotonic() - self.began,
        )


def sentence(type_: str, body: dict[str, Any]) -> str:
    """An event in words, or nothing for those that would only fill the screen."""
    match type_.partition(".")[2]:
        case "generation.GenerationFormed":
            generation = body.get("generation", {})
            return f"generation {generation.get('number')} formed with {generation.get('world_size')} workers"
        case "generation.GenerationBroken":
            return f"generation {body.get('number')} broke: {body.get('cause')} {body.get('message', '')}".rstrip()
        case "worker.Started":
            return f"rank {body.get('rank', 0)} started {body.get('start')} (process {body.get('pid')})"
        case "Committed":
            written = int(body.get("bytes_written", 0)) / 1e6
            return f"checkpoint of step {body.get('step')} committed ({written:.1f} MB written)"
        case "SaveFailed":
            return f"[yellow]save of step {body.get('step')} failed[/]: {body.get('message')}"
        case _:
            return ""
