"""ListJobs with 1,000 queued jobs over real gRPC: must answer a page of 1,000 within 50 ms.

    python benchmarks/list_jobs.py [--quick]

The scheduler runs as a process of its own on a SQLite data folder; the client measures each call from request to
decoded answer, one after the other, while nothing else is asked and again while jobs are submitted all the time. Also
printed: how long a submission takes with the full queue, and how long the queue's reasons and order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from distroml.api.scheduler.v1 import jobs_pb2 as pb
from distroml.api.scheduler.v1.jobs_pb2_grpc import JobServiceStub
from distroml.rpc import RemoteError, connect

TOKEN = "benchmark"
JOBS = 1000
LIMIT_MS = 50.0
SUBMITTERS = 16


@contextlib.contextmanager
def scheduler() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        data = Path(folder)
        (data / "format.json").write_text('{"format": 1, "deployment": "dep-benchmark"}')
        (data / "token").write_text(TOKEN)
        (data / "token").chmod(0o600)
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        environ = {**os.environ, "DISTROML_DATA": folder, "DISTROML_LISTEN": endpoint, "DISTROML_LOG_LEVEL": "WARNING"}
        process = subprocess.Popen([sys.executable, "-m", "distroml.scheduler"], env=environ)
        try:
            yield endpoint
        finally:
            process.terminate()
            process.wait(20)


def spec(index: int) -> pb.JobSpec:
    return pb.JobSpec(
        name=f"job-{index}",
        command=["train.py", "--learning-rate", "3e-4", "--steps", "1000"],
        env={"MODEL": "gpt", "SEED": str(index)},
        workers=pb.WorkerRange(min=2, max=8),
        labels={"team": "research"},
    )


async def submit(jobs: Any, index: int) -> None:
    await jobs.SubmitJob(pb.SubmitJobRequest(spec=spec(index)))


async def filled(jobs: Any) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            await submit(jobs, 0)
            break
        except RemoteError as error:
            if not error.is_transient or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
    left = iter(range(1, JOBS))

    async def some() -> None:
        for index in left:
            await submit(jobs, index)

    await asyncio.gather(*(some() for _ in range(SUBMITTERS)))


async def timed(call: Callable[[], Awaitable[Any]], count: int) -> list[float]:
    """Milliseconds of each of `count` calls."""
    took: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        took.append((time.perf_counter() - began) * 1000)
    return took


def report(name: str, took: list[float]) -> float:
    ordered = sorted(took)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{name:<46} n={len(took):<5} p50 {statistics.median(took):7.2f} ms   p99 {p99:7.2f} ms")
    return p99


async def measure(endpoint: str, count: int) -> bool:
    async with connect(endpoint, TOKEN, actor="benchmark") as channel:
        jobs: Any = JobServiceStub(channel)
        began = time.perf_counter()
        await filled(jobs)
        print(f"{JOBS} jobs submitted by {SUBMITTERS} callers in {time.perf_counter() - began:.1f} s")

        async def page(size: int) -> Any:
            return await jobs.ListJobs(pb.ListJobsRequest(page_size=size))

        found = await page(1000)
        assert len(found.jobs) == JOBS, len(found.jobs)
        assert all(job.state == pb.JOB_STATE_QUEUED and job.reason for job in found.jobs)
        print(f"a page of {JOBS} jobs has {found.ByteSize() / 1024:.0f} KiB")

        whole = report("ListJobs, page of 1000", await timed(lambda: page(1000), count))
        report("ListJobs, page of 100", await timed(lambda: page(100), count))
        report("GetQueue", await timed(lambda: jobs.GetQueue(pb.GetQueueRequest()), count))
        report("SubmitJob", await timed(lambda: submit(jobs, 0), max(20, count // 4)))

        stop = asyncio.Event()

        async def traffic() -> None:
            while not stop.is_set():
                await submit(jobs, 1)
                await asyncio.sleep(0.02)

        busy = asyncio.create_task(traffic())
        report("ListJobs, page of 1000, while jobs are submitted", await timed(lambda: page(1000), count))
        stop.set()
        await busy
    print(f"bound: p99 of a page of 1000 <= {LIMIT_MS:.0f} ms: {'held' if whole <= LIMIT_MS else 'NOT held'}")
    return whole <= LIMIT_MS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls; rough figures")
    options = parser.parse_args()
    with scheduler() as endpoint:
        return 0 if asyncio.run(measure(endpoint, 50 if options.quick else 500)) else 1


if __name__ == "__main__":
    sys.exit(main())
