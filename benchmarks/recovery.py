"""From SIGKILL of a worker to the end of the next generation's first step, against `torchrun --max-restarts`.

The same GPT on 2 workers with a checkpoint every 5 steps; both warm in the page cache; pairs interleaved, the killed
rank alternating. What does not recover within a minute and a half is counted apart and is in no speed figure. To
reach: at least 5 times faster than torchrun.

    python benchmarks/recovery.py [--pairs 6] [--quick] [--shared-store]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from peers import torchrun

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
LIMIT_S = 90.0
# A machine under load takes long to import torch.
START_S = 180.0


def write_config(folder: Path) -> Path:
    """The example's configuration with many steps and a checkpoint every `EVERY`."""
    text = (EXAMPLE / "gpt.toml").read_text()
    text = re.sub(r"(?m)^steps = \d+", "steps = 100000", text)
    text = re.sub(r"(?m)^checkpoint_every = \d+", f"checkpoint_every = {EVERY}", text)
    path = folder / "bench.toml"
    path.write_text(text)
    return path


async def ours(plane: Plane, config: Path, rank: int) -> float | None:
    """Seconds of one recovery under DistroML; None where none came in time."""
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
        if await _until(lambda: _has_saved(plane, job), START_S) is None:
            raise RuntimeError("the first generation did not train")
        started = [b for t, b in await _events(plane, job) if t == "rendezvous.worker.Started"]
        pid = next(int(body["pid"]) for body in started if int(body.get("rank", 0)) == rank)
        killed = time.time()
        os.kill(pid, signal.SIGKILL)
        finished = await _until(lambda: _step_of_second_generation(plane, job), LIMIT_S)
        return None if finished is None else finished - killed
    finally:
        await plane.jobs.CancelJob(jobs_pb2.CancelJobRequest(job=job, request_id=fresh_id("req")))
        await _until(lambda: _is_over(plane, job), START_S)


async def _until(check: Callable[[], Awaitable[float]], limit_s: float) -> float | None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := await check():
            return value
        await asyncio.sleep(0.1)
    return None


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


Pair = tuple[float | None, float | None]


async def measure(folder: DataFolder, config: Path, count: int, *, shared_store: bool) -> list[Pair]:
    """(ours, torchrun) for each pair; which rank dies alternates, and every two pairs which side goes first."""
    found: list[Pair] = []

    async def theirs(rank: int) -> float | None:
        return await asyncio.to_thread(
            torchrun.recovery_s,
            config,
            rank,
            every=EVERY,
            warm_steps=WARM_STEPS,
            limit_s=LIMIT_S,
            shared_store=shared_store,
        )

    async with open_plane(folder.path) as plane:
        for number in range(count):
            rank = number % 2
            if number // 2 % 2:
                peer = await theirs(rank)
                own = await ours(plane, config, rank)
            else:
                own = await ours(plane, config, rank)
                peer = await theirs(rank)
            found.append((own, peer))
            ratio = f"{peer / own:5.1f} x" if own and peer else ""
            print(f"  rank {rank} killed: DistroML {_shown(own)}   torchrun {_shown(peer)}   {ratio}", flush=True)
    return found


def _shown(seconds: float | None) -> str:
    return f"did not recover within {LIMIT_S:.0f} s" if seconds is None else f"{seconds:6.2f} s"


def report(found: list[Pair]) -> None:
    """Medians and spread of what recovered, the ratio within pairs, and what did not recover."""
    for name, column in (("DistroML", [own for own, _ in found]), ("torchrun", [peer for _, peer in found])):
        times = [one for one in column if one is not None]
        lost = f"; {len(column) - len(times)} of {len(column)} did not recover within {LIMIT_S:.0f} s"
        spread = f"median {statistics.median(times):6.2f} s ({min(times):.2f} to {max(times):.2f})" if times else "-"
        print(f"{name}  {spread}{lost if len(times) < len(column) else ''}")
    ratios = [peer / own for own, peer in found if own and peer]
    if ratios:
        middle = statistics.median(ratios)
        print(f"ratio     median {middle:6.1f}   ({min(ratios):.1f} to {max(ratios):.1f}), {len(ratios)} pairs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--quick", action="store_true", help="two pairs")
    parser.add_argument(
        "--shared-store", action="store_true", help="torchrun with the store that outlives attempts, as it comes"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recovery-") as scratch:
        config = write_config(Path(scratch))
        folder = DataFolder(Path(scratch) / "data")
        control.start(folder, slots=2)
        try:
            time.sleep(12)  # the agent's template imports torch
            count = 2 if options.quick else options.pairs
            found = asyncio.run(measure(folder, config, count, shared_store=options.shared_store))
        finally:
            control.stop(folder)
    report(found)


if __name__ == "__main__":
    main()
