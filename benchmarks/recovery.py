"""From SIGKILL of a worker to the end of the next generation's first step, against `torchrun --max-restarts`.

The same GPT on 2 workers with a checkpoint every 5 steps; both warm in the page cache; pairs interleaved, the killed
rank alternating. To reach: at least 5 times faster than torchrun.

    python benchmarks/recovery.py [--pairs 5] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.api.telemetry.v1 import telemetry_pb2
from distroml.cli import spec
from distroml.cli.client import Plane, open_plane
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder
from distroml.events import fresh_id
from distroml.rpc.errors import RemoteError

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "gpt"
EVERY = 5
WARM_STEPS = 8
LIMIT_S = 120.0


def write_config(folder: Path) -> Path:
    """The example's configuration with many steps and a checkpoint every `EVERY`."""
    text = (EXAMPLE / "gpt.toml").read_text()
    text = re.sub(r"(?m)^steps = \d+", "steps = 100000", text)
    text = re.sub(r"(?m)^checkpoint_every = \d+", f"checkpoint_every = {EVERY}", text)
    path = folder / "bench.toml"
    path.write_text(text)
    return path


async def ours(plane: Plane, config: Path, rank: int) -> float:
    """Seconds of one recovery under DistroML."""
    request = spec.from_command(
        [str(EXAMPLE / "train.py"), "--config", str(config), "--out", str(config.parent)],
        name="recovery",
        workers="2",
        env=["OMP_NUM_THREADS=1"],
        bundle=EXAMPLE,
        priority=0,
        max_failures=3,
        keep=2,
    )
    bundle = await spec.upload(plane, request.root)
    request.spec.bundle = bundle.sha256
    submit = jobs_pb2.SubmitJobRequest(spec=request.spec, request_id=fresh_id("req"))
    job = (await plane.jobs.SubmitJob(submit)).id
    try:
        await _until(lambda: _has_saved(plane, job))
        started = [b for t, b in await _events(plane, job) if t == "rendezvous.worker.Started"]
        pid = next(int(body["pid"]) for body in started if int(body.get("rank", 0)) == rank)
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        return await _until(lambda: _step_of_second_generation(plane, job)) - killed
    finally:
        await plane.jobs.CancelJob(jobs_pb2.CancelJobRequest(job=job, request_id=fresh_id("req")))
        await _until(lambda: _is_over(plane, job))


async def _until(check) -> float:
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if value := await check():
            return value
        await asyncio.sleep(0.1)
    raise SystemExit("no recovery within the limit")


async def _events(plane: Plane, job: str) -> list[tuple[str, dict]]:
    pages = plane.jobs.ListEvents(jobs_pb2.ListEventsRequest(job=job))
    return [(event.type, json.loads(event.json or "{}")) async for page in pages for event in page.events]


async def _has_saved(plane: Plane, job: str) -> float:
    try:
        summary = await plane.telemetry.GetJobSummary(telemetry_pb2.GetJobSummaryRequest(job=job))
    except RemoteError:
        return 0.0  # not heard of yet
    return float(summary.checkpoints and summary.step >= WARM_STEPS)


async def _step_of_second_generation(plane: Plane, job: str) -> float:
    request = telemetry_pb2.QuerySeriesRequest(job=job, names=["loss"], max_points=5000)
    series = (await plane.telemetry.QuerySeries(request)).series
    times = [point.at_ms / 1000 for one in series for point in one.points if point.generation >= 2]
    return min(times, default=0.0)


async def _is_over(plane: Plane, job: str) -> float:
    return float((await plane.jobs.GetJob(jobs_pb2.GetJobRequest(job=job))).state == jobs_pb2.JOB_STATE_CANCELLED)


def torchrun(config: Path, rank: int) -> float:
    """Seconds of one recovery under torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"),
            *("--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
            *(str(ROOT / "benchmarks/peers/torchrun_gpt.py"), str(config), f"{folder}/state.pt", str(EVERY)),
        ]
        process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        # A torchrun that hangs must not hold up the measurement: its output then ends, and that is told.
        limit = threading.Timer(LIMIT_S, process.terminate)
        limit.start()
        try:
            return _watch_torchrun(process, rank)
        finally:
            limit.cancel()
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _watch_torchrun(process: subprocess.Popen[str], rank: int) -> float:
    pids: dict[int, int] = {}
    saved, killed, ranks_again = 0, 0.0, set[int]()
    for line in _lines(process):
        match line.split():
            case ["PID", number, pid]:
                pids[int(number)] = int(pid)
                if killed:
                    ranks_again.add(int(number))
            case ["SAVED", step]:
                saved = int(step)
            case ["STEP", step, at] if not killed and saved and int(step) >= WARM_STEPS:
                killed = time.time()
                os.kill(pids[rank], signal.SIGKILL)
            case ["STEP", _, at] if killed and len(ranks_again) == 2:
                return float(at) - killed
            case _:
                pass
    raise SystemExit("torchrun ended without recovering")


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from process.stdout


async def measure(folder: DataFolder, config: Path, count: int) -> list[tuple[float, float]]:
    """(ours, torchrun) for each pair; which of them goes first alternates."""
    found: list[tuple[float, float]] = []
    async with open_plane(folder.path) as plane:
        for number in range(count):
            rank, theirs = number % 2, 0.0
            if number % 2:
                theirs = await asyncio.to_thread(torchrun, config, rank)
            own = await ours(plane, config, rank)
            if not number % 2:
                theirs = await asyncio.to_thread(torchrun, config, rank)
            found.append((own, theirs))
            print(f"  rank {rank} killed: DistroML {own:6.2f} s   torchrun {theirs:6.2f} s   {theirs / own:5.1f} x")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two pairs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recovery-") as scratch:
        config = write_config(Path(scratch))
        folder = DataFolder(Path(scratch) / "data")
        control.start(folder, slots=2)
        try:
            time.sleep(12)  # the agent's template imports torch
            found = asyncio.run(measure(folder, config, 2 if options.quick else options.pairs))
        finally:
            control.stop(folder)
    ratios = [theirs / own for own, theirs in found]
    print(
        f"DistroML median {statistics.median(own for own, _ in found):.2f} s, "
        f"torchrun median {statistics.median(theirs for _, theirs in found):.2f} s, "
        f"ratio median {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    )


if __name__ == "__main__":
    main()
