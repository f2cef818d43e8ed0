"""What a user waits for: from submit to the first step on a warm system, and `distroml jobs` with 1,000 queued jobs.

To reach: at most 3 s from the call of SubmitJob to the end of the first optimizer step of the example's GPT on 2
workers (median), and at most 1 s for the whole `distroml jobs` process (median).

    python benchmarks/control_plane.py [--rounds 7] [--jobs 1000] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.cli import spec
from distroml.cli.client import Plane, open_plane
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder
from distroml.events import fresh_id

EXAMPLE = Path(__file__).parents[1] / "examples" / "gpt"
LIMIT_S = 60.0


async def request(plane: Plane, workers: int) -> jobs_pb2.JobSpec:
    """The example as a spec, its code stored already."""
    made = spec.from_command(
        [str(EXAMPLE / "train.py")],
        name="bench",
        workers=str(workers),
        env=["OMP_NUM_THREADS=1"],
        bundle=EXAMPLE,
        priority=0,
        max_failures=0,
        keep=None,
    )
    made.spec.bundle = (await spec.upload(plane, made.root)).sha256
    return made.spec


async def submit(plane: Plane, wanted: jobs_pb2.JobSpec) -> str:
    """Submit it; returns the job's id."""
    asked = jobs_pb2.SubmitJobRequest(spec=wanted, request_id=fresh_id("req"))
    return (await plane.jobs.SubmitJob(asked)).id


async def first_step_s(plane: Plane, wanted: jobs_pb2.JobSpec) -> float:
    """Seconds from the call of SubmitJob to the end of the first step, by this machine's wall clock."""
    began = time.time()
    job = await submit(plane, wanted)
    query = telemetry_pb2.QuerySeriesRequest(job=job, names=["loss"], max_points=10)
    ended = 0.0
    while not ended:
        if time.time() - began > LIMIT_S:
            raise SystemExit("no step within the limit")
        await asyncio.sleep(0.1)
        series = (await plane.telemetry.QuerySeries(query)).series
        ended = min((point.at_ms / 1000 for one in series for point in one.points if point.step == 1), default=0.0)
    await plane.jobs.CancelJob(jobs_pb2.CancelJobRequest(job=job, request_id=fresh_id("req")))
    while (await plane.jobs.GetJob(jobs_pb2.GetJobRequest(job=job))).placement:
        await asyncio.sleep(0.1)
    await asyncio.sleep(1.0)
    return ended - began


def listing_s(data: Path) -> float:
    """Wall seconds of one `distroml jobs`."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "distroml.cli.main", "jobs", "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "160"})
    assert done.stdout.count("\n") > 100, done.stdout[:500]
    return time.perf_counter() - began


async def measure(folder: DataFolder, rounds: int, jobs: int) -> tuple[list[float], list[float]]:
    """(seconds to the first step, seconds of a listing) of each round."""
    async with open_plane(folder.path) as plane:
        wanted = await request(plane, 2)
        await first_step_s(plane, wanted)
        steps = [await first_step_s(plane, wanted) for _ in range(rounds)]
        queued = jobs_pb2.JobSpec()
        queued.CopyFrom(wanted)
        queued.workers.min = queued.workers.max = 200
        for _ in range(jobs):
            await submit(plane, queued)
        await asyncio.to_thread(listing_s, folder.path)
        return steps, [await asyncio.to_thread(listing_s, folder.path) for _ in range(rounds)]


def show(name: str, values: list[float]) -> None:
    """Median and range."""
    print(f"{name:<48} median {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="three rounds, 200 jobs")
    options = parser.parse_args()
    rounds, jobs = (3, 200) if options.quick else (options.rounds, options.jobs)
    with tempfile.TemporaryDirectory(prefix="control-plane-") as scratch:
        folder = DataFolder(Path(scratch) / "data")
        control.start(folder, slots=2)
        try:
            time.sleep(12)  # the agent's template imports torch
            steps, listings = asyncio.run(measure(folder, rounds, jobs))
        finally:
            control.stop(folder)
    show("submit to the end of the first step, 2 workers", steps)
    show(f"`distroml jobs` with {jobs} queued jobs", listings)


if __name__ == "__main__":
    main()
