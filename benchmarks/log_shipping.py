"""What shipping a loud rank's lines costs the training beside it: a step with shipping on against off.

Two control planes on this machine, each with a node, alike but that one node ships nothing
(`DISTROML_AGENT_LOG_BYTES_PER_S=0`). On each in turn the example GPT trains with 2 workers while rank 0 writes 10 MB/s
of lines; which comes first swaps from pair to pair. Steps count from `WARM_S` on, when the burst that a quiet node had
saved up is over. Telemetry and Elasticsearch, which a deployment has elsewhere, are stood in for by processes that
take everything, keep nothing and run where nobody else does; what CPU they take is told apart. With `--telemetry` the
control plane's own takes the lines, on the same processors. Printed besides: bytes in the file against bytes written,
what was shipped, and what became of every line.

To reach: all bytes in the file, at most 1 MB/s shipped, every line counted, and a step at most 1.02 times as long.

    python benchmarks/log_shipping.py [--pairs 8] [--steps 300] [--telemetry] [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import psutil
from _pairs import summary
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
RECEIVER = Path(__file__).parent / "loud" / "receiver.py"
TELEMETRY = Path(__file__).parent / "loud" / "telemetry.py"
BYTES_PER_S = 10_000_000
LIMIT_BYTES_PER_S = 1_000_000
BOUND = 1.02
WARM_S = 6.0
DEADLINE_S = 600.0
SETTLE_S = 30.0


@dataclass(frozen=True, slots=True)
class Block:
    """One training: milliseconds of a step, and what its lines came to."""

    step_ms: float
    seconds: float
    written_bytes: int
    file_bytes: int
    limited_bytes: int
    written_lines: int
    outcomes: dict[str, int]
    cpu: dict[str, float]
    """CPU seconds in a second, by who took them."""


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


def processes_of(supervisor: int, module: str) -> list[psutil.Process]:
    """The processes below a supervisor that run a module: services, and what they start of themselves."""
    return [one for one in psutil.Process(supervisor).children(recursive=True) if module in one.cmdline()]


def stand_back(process: psutil.Process, *, idle: bool) -> None:
    """As if it were on another machine, as far as that can be had on this one; `idle`: run where nobody else does.

    A service that gets no time at all counts as silent, and its supervisor puts another one in its place.
    """
    for thread in process.threads():
        os.setpriority(os.PRIO_PROCESS, thread.id, 19)
        if idle:
            os.sched_setscheduler(thread.id, os.SCHED_IDLE, os.sched_param(0))
    # Sessions share processors as groups where the kernel has been told so (sched(7)).
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text("19")


class Receiver:
    """A process in the place of a server; once it was closed, what it was sent."""

    def __init__(self, script: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        self.process = psutil.Process(self._process.pid)
        stand_back(self.process, idle=True)
        self.bytes = self.documents = 0

    def close(self) -> None:
        told = json.loads(self._process.communicate()[0])
        self.bytes, self.documents = told["bytes"], told.get("documents", 0)


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


class Side:
    """A control plane on which the loud job is trained, one block after the other."""

    def __init__(self, scratch: Path, name: str, environ: Mapping[str, str], elsewhere: list[psutil.Process]) -> None:
        self.blocks: list[Block] = []
        self._scratch, self._elsewhere = scratch, elsewhere
        self._folder = DataFolder(scratch / name)
        self._endpoints = control.start(self._folder, slots=1)
        self._node = Node(self._folder, self._endpoints, scratch / f"node-{name}", environ)
        for process in processes_of(self._endpoints.supervisor, "distroml.telemetry"):
            stand_back(process, idle=False)

    def close(self) -> None:
        self._node.close()
        control.stop(self._folder)

    async def block(self, code: Path, steps: int) -> None:
        """Train once."""
        out = self._scratch / f"out-{fresh_id('b')}"
        out.mkdir()
        node, agent = self._node.metrics, self._node.process.pid
        parts = {
            "agent": [psutil.Process(agent)],
            "shipper": processes_of(agent, "distroml.agent.shipper"),
            "telemetry": processes_of(self._endpoints.supervisor, "distroml.telemetry"),
            "elsewhere": self._elsewhere,
        }
        before, begun = counted(node), time.monotonic()
        cpu = {name: cpu_s(processes) for name, processes in parts.items()}
        await self._train(code, out, steps)
        seconds = time.monotonic() - begun
        used = {name: (cpu_s(processes) - cpu[name]) / seconds for name, processes in parts.items()}
        written = json.loads((out / "written").read_text())
        outcomes = await self._settled(before, written["lines"])
        file = max((self._node.folder / "node").rglob("stdout"), key=lambda path: path.stat().st_mtime_ns)
        self.blocks.append(
            Block(
                step_ms=step_ms(out / "steps"),
                seconds=seconds,
                written_bytes=written["bytes"],
                file_bytes=file.stat().st_size,
                limited_bytes=outcomes.pop("bytes", 0),
                written_lines=written["lines"],
                outcomes=dict(outcomes),
                cpu=used,
            )
        )
        file.unlink()

    async def _settled(self, before: Counter[str], lines: int) -> Counter[str]:
        """What was counted of a job's lines, as soon as it is all of them."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            found = counted(self._node.metrics) - before
            if not found or found.total() - found["bytes"] >= lines or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.2)

    async def _train(self, code: Path, out: Path, steps: int) -> None:
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
                await asyncio.sleep(0.25)
        raise RuntimeError(f"the job did not end within {DEADLINE_S:.0f} s")


def step_ms(file: Path) -> float:
    """Milliseconds of a step after the first `WARM_S`."""
    ends = [int(line) for line in file.read_text().split()]
    warm = [end for end in ends if end >= ends[0] + WARM_S * 1e9]
    if len(warm) < 10:
        raise RuntimeError(f"only {len(warm)} steps after the first {WARM_S:.0f} s: give more --steps")
    return (warm[-1] - warm[0]) / (len(warm) - 1) / 1e6


def report(on: list[Block], off: list[Block], receiver: Receiver) -> dict[str, object]:
    """Prints what was found."""
    ratios = [a.step_ms / b.step_ms for a, b in zip(on, off, strict=True)]
    result: dict[str, object] = {"pairs": len(ratios), "bound": BOUND, "median": statistics.median(ratios)}
    print(f"step on/off      median {statistics.median(ratios):.4f}  ({min(ratios):.4f} to {max(ratios):.4f})", end="")
    if len(ratios) > 2:
        result |= summary(ratios)
        print(f" +- {result['median_error']:.4f}", end="")
    print(f"   {statistics.median(b.step_ms for b in off):.1f} ms off   to reach: {BOUND}")
    written, kept = sum(b.written_bytes for b in on), sum(b.file_bytes for b in on)
    print(f"in the file      {kept:,} of {written:,} bytes written ({kept / written:.4%})")
    rates = [(b.written_bytes - b.limited_bytes) / b.seconds for b in on]
    print(
        f"shipped          {statistics.median(rates):,.0f} bytes/s of output, at most {max(rates):,.0f}, bursts "
        f"included; to reach: {LIMIT_BYTES_PER_S:,}"
    )
    outcomes: Counter[str] = Counter()
    for block in on:
        outcomes.update(block.outcomes)
    lines = sum(b.written_lines for b in on)
    print(f"lines            {lines:,} written; counted " + ", ".join(f"{k} {v:,}" for k, v in outcomes.items()))
    print(f"received         {receiver.documents:,} documents in {receiver.bytes:,} bytes")
    per_line = statistics.median(b.cpu["shipper"] * b.seconds / max(1, b.outcomes.get("shipped", 0)) for b in on)
    print(f"shipper          {per_line * 1e6:.1f} µs CPU for each line shipped, those counted as limited included")
    for name, blocks in (("on", on), ("off", off)):
        shares = [f"{part} {statistics.median(b.cpu[part] for b in blocks):.1%}" for part in blocks[0].cpu]
        print(f"CPU with {name:<7} {', '.join(shares)} of a core")
    return result | {"on": [asdict(b) for b in on], "off": [asdict(b) for b in off]}


async def measure(sides: tuple[Side, Side], code: Path, pairs: int, steps: int, *, warm: bool) -> None:
    """Train on both sides in turn; with `warm` once unmeasured before, for caches and templates."""
    for side in sides if warm else ():
        await side.block(code, steps)
        side.blocks.clear()
    for number in range(pairs):
        for side in sides if number % 2 == 0 else reversed(sides):
            await side.block(code, steps)
        on, off = (side.blocks[-1] for side in sides)
        print(f"  on {on.step_ms:6.1f} ms   off {off.step_ms:6.1f} ms   {on.step_ms / off.step_ms:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--telemetry", action="store_true", help="the control plane's own takes the lines")
    parser.add_argument("--quick", action="store_true", help="one pair of 100 steps; a rough figure")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
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
            elsewhere = [receiver.process, telemetry.process]
            off = Side(scratch, "off", {**told, "DISTROML_AGENT_LOG_BYTES_PER_S": "0"}, elsewhere)
            closing.callback(off.close)
            on = Side(scratch, "on", {**told, "DISTROML_ELASTICSEARCH": receiver.url}, elsewhere)
            closing.callback(on.close)
            pairs, steps = (1, options.steps or 100) if options.quick else (options.pairs, options.steps or 300)
            asyncio.run(measure((on, off), code, pairs, steps, warm=not options.quick))
        result = report(on.blocks, off.blocks, receiver)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    complete = all(b.file_bytes == b.written_bytes and sum(b.outcomes.values()) == b.written_lines for b in on.blocks)
    sys.exit(0 if complete and float(str(result["median"])) <= BOUND else 1)


if __name__ == "__main__":
    main()
