"""What shipping a loud rank's lines costs the training beside it: a step with shipping on against off.

On a node of this machine the example GPT trains with 2 workers while rank 0 writes 10 MB/s of lines. Shipping goes off
and on within the same trainings, for some seconds each: the process that ships is stopped and let go on, so that both
see the same processes, files and neighbours. Blocks come in pairs, on-off and off-on in turn. Between two pairs nothing
is switched: what two such blocks differ by tells how much of a ratio is scatter. A block is measured from `SETTLE_S`
after its beginning, when what was written while shipping was off has been counted. Beside the time of a step there is
the CPU time that both ranks take for it, which other processes' time is no part of: it tells what is lost to caches.

Telemetry and Elasticsearch, which a deployment has elsewhere, are stood in for by processes that take everything, keep
nothing and run where nobody else does. With `--telemetry` the control plane's own takes the lines, on these processors.
Printed besides: the CPU time of agent and shipping, bytes in the file against bytes written, what was shipped, and what
became of every line.

To reach: all bytes in the file, at most 1 MB/s shipped, every line counted, and a step at most 1.02 times as long.

    python benchmarks/log_shipping.py [--trainings 3] [--minutes 3] [--block 4] [--telemetry] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import psutil
from _pairs import interval
from loud.elsewhere import RECEIVER, TELEMETRY, Receiver, cpu_s, stand_back
from loud.node import SLOTS, Node
from prometheus_client.parser import text_string_to_metric_families

from distroml.api.scheduler.v1 import jobs_pb2
from distroml.cli import spec
from distroml.cli.client import open_plane
from distroml.cli.plane import control
from distroml.cli.plane.datafolder import DataFolder
from distroml.events import fresh_id
from distroml.observability import names

EXAMPLE = Path(__file__).parents[1] / "examples" / "gpt"
RANK = Path(__file__).parent / "loud" / "rank.py"
BYTES_PER_S = 10_000_000
LIMIT_BYTES_PER_S = 1_000_000
BOUND = 1.02
WARM_S = 6.0
SETTLE_S = 1.5
DEADLINE_S = 1200.0
AFTERWARDS_S = 30.0
START_S = 30.0
TRIAL_STEPS = 40
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Reading:
    """At a time of the machine's monotonic clock, CPU seconds by who has used them."""

    at_ns: int
    cpu: dict[str, float]


@dataclass(frozen=True, slots=True)
class Block:
    """Some seconds with shipping on or off: milliseconds of a step, and CPU seconds in a second by who took them."""

    on: bool
    step_ms: float
    step_cpu_ms: float
    cpu: dict[str, float]


@dataclass(frozen=True, slots=True)
class Training:
    """One training, and what its lines came to."""

    blocks: list[Block]
    on_s: float
    written_bytes: int
    file_bytes: int
    limited_bytes: int
    written_lines: int
    outcomes: dict[str, int]

    @property
    def pairs(self) -> list[tuple[Block, Block]]:
        """On and off, of blocks that follow one another."""
        found = zip(self.blocks[::2], self.blocks[1::2], strict=False)
        return [(one, other) if one.on else (other, one) for one, other in found]

    @property
    def alike(self) -> list[tuple[Block, Block]]:
        """Blocks that follow one another with nothing switched between them."""
        return list(zip(self.blocks[1::2], self.blocks[2::2], strict=False))


def counted(metrics: str) -> Counter[str]:
    """What an agent counted of lines, by outcome, and of bytes past its limit, as `bytes`."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == names.AGENT_LOG_LINES:
                found[sample.labels["outcome"]] += int(sample.value)
            elif sample.name == names.AGENT_LOG_BYTES_LIMITED:
                found["bytes"] += int(sample.value)
    return found


def processes_of(supervisor: int, module: str) -> list[int]:
    """The processes below a supervisor that run a module: services, and what they start of themselves."""
    return [one.pid for one in psutil.Process(supervisor).children(recursive=True) if module in one.cmdline()]


def started(parent: int, module: str) -> int:
    """The one process below another that runs a module, as soon as there is one."""
    deadline = time.monotonic() + START_S
    while not (found := processes_of(parent, module)):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{module} was not started")
        time.sleep(0.1)
    return found[0]


def steps_at(ends: Sequence[int], at_ns: int) -> float:
    """How many steps had ended at a time, the begun one in parts."""
    done = bisect_right(ends, at_ns)
    return done + (at_ns - ends[done - 1]) / (ends[done] - ends[done - 1])


def block_of(on: bool, begin: Reading, end: Reading, ends: Sequence[int]) -> Block:
    """What two readings and the times at which steps ended come to."""
    seconds, steps = (end.at_ns - begin.at_ns) / 1e9, steps_at(ends, end.at_ns) - steps_at(ends, begin.at_ns)
    used = {name: end.cpu[name] - begin.cpu[name] for name in end.cpu}
    return Block(
        on=on,
        step_ms=seconds / steps * 1e3,
        step_cpu_ms=used["ranks"] / steps * 1e3,
        cpu={name: one / seconds for name, one in used.items()},
    )


class Switched:
    """A control plane and a node on which the loud job is trained, and shipping that goes off and on meanwhile."""

    def __init__(self, scratch: Path, environ: Mapping[str, str], elsewhere: list[int]) -> None:
        self._scratch, self._elsewhere = scratch, elsewhere
        self._folder = DataFolder(scratch / "plane")
        # Who is told to end while these start leaves none of them behind.
        with contextlib.ExitStack() as closing:
            closing.callback(control.stop, self._folder)
            self._endpoints = control.start(self._folder, slots=1)
            self._node = Node(self._folder, self._endpoints, scratch / "node", environ)
            closing.callback(self._node.close)
            self._telemetry = processes_of(self._endpoints.supervisor, "distroml.telemetry")
            for pid in self._telemetry:
                stand_back(psutil.Process(pid), idle=False)
            self._shipper = started(self._node.process.pid, "distroml.agent.shipper")
            self._closing = closing.pop_all()

    def close(self) -> None:
        self._closing.close()

    async def train(self, code: Path, steps: int, block_s: float) -> tuple[Training, float]:
        """Train once; what was found, and the seconds of a step."""
        out = self._scratch / f"out-{fresh_id('b')}"
        out.mkdir()
        before = counted(self._node.metrics)
        training = asyncio.create_task(self._job(code, out, steps))
        readings: list[tuple[bool, Reading, Reading]] = []
        off_s = 0.0
        while not training.done() and not _lines(out / "steps"):
            await asyncio.sleep(0.1)
        begun = time.monotonic()
        try:
            await asyncio.wait([training], timeout=WARM_S)
            while not training.done():
                on = len(readings) % 4 in (0, 3)
                os.kill(self._shipper, signal.SIGCONT if on else signal.SIGSTOP)
                switched = time.monotonic()
                await asyncio.wait([training], timeout=SETTLE_S)
                begin = self._reading(out)
                await asyncio.wait([training], timeout=block_s)
                if not training.done():
                    readings.append((on, begin, self._reading(out)))
                off_s += 0.0 if on else time.monotonic() - switched
        finally:
            os.kill(self._shipper, signal.SIGCONT)
        await training
        on_s = time.monotonic() - begun - off_s
        written = json.loads((out / "written").read_text())
        outcomes = await self._settled(before, written["lines"])
        file = max((self._node.folder / "node").rglob("stdout"), key=lambda path: path.stat().st_mtime_ns)
        ends = _lines(out / "steps")
        # The last one may have been read when steps were over already.
        whole = [one for one in readings if one[2].at_ns < ends[-1]]
        found = Training(
            blocks=[block_of(on, begin, end, ends) for on, begin, end in whole],
            on_s=on_s,
            written_bytes=written["bytes"],
            file_bytes=file.stat().st_size,
            limited_bytes=outcomes.pop("bytes", 0),
            written_lines=written["lines"],
            outcomes=dict(outcomes),
        )
        file.unlink()
        return found, (ends[-1] - ends[0]) / 1e9 / (len(ends) - 1)

    def _reading(self, out: Path) -> Reading:
        parts = {
            "ranks": [int((out / f"pid.{rank}").read_text()) for rank in range(2)],
            "agent": [self._node.process.pid],
            "shipper": [self._shipper],
            "telemetry": self._telemetry,
            "elsewhere": self._elsewhere,
        }
        cpu: dict[str, float] = {}
        for name, pids in parts.items():
            cpu[name] = 0.0
            for pid in pids:
                # A rank may have ended meanwhile: the block is none then.
                with contextlib.suppress(OSError):
                    cpu[name] += cpu_s(pid)
        return Reading(time.monotonic_ns(), cpu)

    async def _settled(self, before: Counter[str], lines: int) -> Counter[str]:
        """What was counted of a job's lines, as soon as it is all of them."""
        deadline = time.monotonic() + AFTERWARDS_S
        while True:
            found = counted(self._node.metrics) - before
            if found.total() - found["bytes"] >= lines or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.2)

    async def _job(self, code: Path, out: Path, steps: int) -> None:
        request = spec.from_command(
            [str(code / RANK.name), str(out), str(steps), str(BYTES_PER_S)],
            name="loud", workers="2", env=["OMP_NUM_THREADS=1"], bundle=code, priority=0, max_failures=0, keep=None,
        )  # fmt: skip
        request.spec.log_cap_bytes = 64 << 30
        request.spec.workers.per_node = SLOTS  # on our node, and not on the control plane's own
        async with open_plane(self._folder.path) as plane:
            request.spec.bundle = (await spec.upload(plane, request.root)).sha256
            submit = jobs_pb2.SubmitJobRequest(spec=request.spec, request_id=fresh_id("req"))
            job = (await plane.jobs.SubmitJob(submit)).id
            deadline = time.monotonic() + DEADLINE_S
            while time.monotonic() < deadline:
                told = await plane.jobs.GetJob(jobs_pb2.GetJobRequest(job=job))
                if told.state == jobs_pb2.JOB_STATE_SUCCEEDED:
                    return
                if told.state in (jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_CANCELLED):
                    raise RuntimeError(f"the job ended: {told.message}")
                await asyncio.sleep(1.0)
        raise RuntimeError(f"the job did not end within {DEADLINE_S:.0f} s")


def _lines(file: Path) -> list[int]:
    """The whole lines of a file of numbers, none where there is no file."""
    with contextlib.suppress(FileNotFoundError):
        return [int(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return []


def told_of(name: str, ratios: list[float]) -> dict[str, float]:
    """Prints the median of ratios, and between which it is."""
    low, high = interval(ratios)
    print(
        f"{name:<22} {statistics.median(ratios):.4f}  ({low:.4f} to {high:.4f} in 19 of 20 cases, {len(ratios)} pairs)"
    )
    return {"median": statistics.median(ratios), "low": low, "high": high}


def report(trainings: list[Training], receiver: Receiver) -> dict[str, Any]:
    """Prints what was found."""
    pairs = [pair for one in trainings for pair in one.pairs]
    alike = [pair for one in trainings for pair in one.alike]
    off = [block for _, block in pairs]
    result: dict[str, Any] = {"bound": BOUND}
    print(f"step off               {statistics.median(b.step_ms for b in off):.1f} ms   to reach: {BOUND}")
    result["step"] = told_of("step on/off", [a.step_ms / b.step_ms for a, b in pairs])
    result["step_cpu"] = told_of("ranks' CPU, on/off", [a.step_cpu_ms / b.step_cpu_ms for a, b in pairs])
    if alike:
        result["alike"] = told_of("step, alike", [a.step_ms / b.step_ms for a, b in alike])
        result["alike_cpu"] = told_of("ranks' CPU, alike", [a.step_cpu_ms / b.step_cpu_ms for a, b in alike])
    for name, blocks in (("on", [block for block, _ in pairs]), ("off", off)):
        shares = [f"{part} {statistics.median(b.cpu[part] for b in blocks):.2%}" for part in blocks[0].cpu]
        print(f"CPU with {name:<13} {', '.join(shares)} of a core")
    more = [sum(a.cpu[part] - b.cpu[part] for part in ("agent", "shipper")) for a, b in pairs]
    cores = os.cpu_count() or 1
    result["node_cpu"] = statistics.median(more) / cores
    print(
        f"agent and shipper      {statistics.median(more):.2%} of a core more with on, "
        f"{result['node_cpu']:.2%} of the node"
    )
    written, kept = sum(t.written_bytes for t in trainings), sum(t.file_bytes for t in trainings)
    print(f"in the file            {kept:,} of {written:,} bytes written ({kept / written:.4%})")
    rates = [(t.written_bytes - t.limited_bytes) / t.on_s for t in trainings]
    print(f"shipped                at most {max(rates):,.0f} bytes/s while it was on; to reach: {LIMIT_BYTES_PER_S:,}")
    outcomes: Counter[str] = Counter()
    for one in trainings:
        outcomes.update(one.outcomes)
    lines = sum(t.written_lines for t in trainings)
    print(f"lines                  {lines:,} written; counted " + ", ".join(f"{k} {v:,}" for k, v in outcomes.items()))
    print(f"received               {receiver.documents:,} documents in {receiver.bytes:,} bytes")
    return result | {"trainings": [asdict(t) for t in trainings]}


async def measure(node: Switched, code: Path, trainings: int, minutes: float, block_s: float) -> list[Training]:
    """Train once unmeasured, for caches and templates and for how many steps fill the time; then as often as asked."""
    _, step_s = await node.train(code, TRIAL_STEPS, block_s)
    found: list[Training] = []
    for _ in range(trainings):
        one, _ = await node.train(code, int((minutes * 60 + WARM_S) / step_s), block_s)
        found.append(one)
        ratios = [a.step_ms / b.step_ms for a, b in one.pairs]
        print(f"  {len(ratios)} pairs, median {statistics.median(ratios):.4f}", flush=True)
    return found


def _end(number: int, _: object) -> None:
    """Unwinds what was started, as Ctrl-C does; the next signal must not cut that short."""
    for one in ENDING:
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    for number in ENDING:
        signal.signal(number, _end)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=3.0, help="of each training")
    parser.add_argument("--block", type=float, default=4.0, help="seconds that are measured at a time")
    parser.add_argument("--telemetry", action="store_true", help="the control plane's own takes the lines")
    parser.add_argument("--quick", action="store_true", help="one training of half a minute; a rough figure")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trainings, minutes = (1, 0.5) if options.quick else (options.trainings, options.minutes)
    with tempfile.TemporaryDirectory(prefix="shipping-") as scratch_name:
        scratch = Path(scratch_name)
        code = scratch / "code"
        shutil.copytree(EXAMPLE, code)
        shutil.copy(RANK, code)
        receiver, telemetry = Receiver(RECEIVER), Receiver(TELEMETRY)
        with contextlib.ExitStack() as closing:
            closing.callback(receiver.close)
            closing.callback(telemetry.close)
            told = {} if options.telemetry else {"DISTROML_TELEMETRY": telemetry.url}
            environ = {**told, "DISTROML_ELASTICSEARCH": receiver.url}
            node = Switched(scratch, environ, [receiver.pid, telemetry.pid])
            closing.callback(node.close)
            found = asyncio.run(measure(node, code, trainings, minutes, options.block))
        result = report(found, receiver)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    complete = all(t.file_bytes == t.written_bytes and sum(t.outcomes.values()) == t.written_lines for t in found)
    sys.exit(0 if complete and result["step"]["median"] <= BOUND else 1)


if __name__ == "__main__":
    main()
