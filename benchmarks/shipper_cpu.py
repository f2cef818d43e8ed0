"""CPU time of the process that ships lines, by what it has to do: nothing, count lines, ship them.

The real process (`python -m distroml.agent.shipper`) between a file that grows and processes that take everything in
the place of telemetry and Elasticsearch. Its CPU time tells two versions apart within a minute, on a machine that is
not quiet, too: nothing else needs to be measured beside it. It does not stand back here, so that it gets what it wants.

    python benchmarks/shipper_cpu.py [--seconds 10] [--rounds 3] [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
from loud.elsewhere import RECEIVER, TELEMETRY, Receiver, cpu_s

from distroml.agent.adapters.lines import ENCODE, Arrived, Follow, Word
from distroml.api.telemetry.v1 import telemetry_pb2 as pb

WARM_S = 2.0
START_S = 60.0
TICK_S = 0.02
LINE = "{:09d} rank 0 sample loss 2.3417 tokens 1024 grad_norm 0.8812 lr 0.00093 data shard-00017.tar offset 48213"
"""As `loud/rank.py` writes them."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is written and how much of it may leave, bytes a second."""

    name: str
    written: int
    allowed: int


IDLE = Case("idle", 0, 1_000_000)
COUNTED = Case("counted", 10_000_000, 1)
SHIPPED = Case("shipped", 1_000_000, 2_000_000)
LOUD = Case("loud", 10_000_000, 1_000_000)


@dataclass(frozen=True, slots=True)
class Found:
    """In a second: CPU seconds, and what became of lines."""

    cpu: float
    shipped_lines: float
    limited_bytes: float


class Shipper:
    """The process, and what it has told."""

    def __init__(self, scratch: Path, case: Case, environ: dict[str, str]) -> None:
        self.counts: Counter[str] = Counter()
        data = scratch / "data"
        (data / "node").mkdir(parents=True)
        (data / "token").write_text("token")
        (data / "token").chmod(0o600)
        told = {"DATA": data, "DEPLOYMENT": "bench", "AGENT_LOG_BYTES_PER_S": case.allowed, "AGENT_LOG_NICE": 0}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "distroml.agent.shipper"],
            env={**os.environ, **environ, **{f"DISTROML_{name}": str(value) for name, value in told.items()}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        threading.Thread(target=self._hear, daemon=True).start()
        # It has begun once a line has arrived, the shortest that there is.
        first = scratch / "first"
        first.mkdir()
        (first / "stdout").write_bytes(b"\n")
        self.follow(first)
        deadline = time.monotonic() + START_S
        while not self.counts["shipped"]:
            if time.monotonic() > deadline:
                raise RuntimeError("the process does not ship anything")
            time.sleep(0.05)

    def follow(self, folder: Path) -> None:
        """Read this folder's files."""
        assert self.process.stdin is not None
        record = pb.LogRecord(job="job-bench", worker="worker-0", generation=1, attempt=1)
        self.process.stdin.write(ENCODE(Follow(str(folder), record.SerializeToString())) + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def _hear(self) -> None:
        assert self.process.stdout is not None
        decode = msgspec.json.Decoder(Word).decode
        for line in self.process.stdout:
            if isinstance(word := decode(line), Arrived):
                self.counts.update(word.counts)
                self.counts["bytes"] += word.limited_bytes


def write(file: Path, bytes_per_s: int, over: threading.Event) -> None:
    """Write lines at a rate, until told to end."""
    piece = "".join(LINE.format(number) + "\n" for number in range(10_000)).encode()
    length, written, begun = len(LINE.format(0)) + 1, 0, time.monotonic()
    with file.open("wb", buffering=0) as out:
        while not over.wait(TICK_S):
            owed = int((time.monotonic() - begun) * bytes_per_s) - written
            written += out.write(memoryview(piece)[: min(owed // length * length, len(piece))])


def measure(case: Case, seconds: float, environ: dict[str, str]) -> Found:
    """One run of a fresh process."""
    with tempfile.TemporaryDirectory(prefix="shipper-") as scratch_name, contextlib.ExitStack() as closing:
        scratch, over = Path(scratch_name), threading.Event()
        shipper = Shipper(scratch, case, environ)
        closing.callback(shipper.close)
        folder = scratch / "worker"
        folder.mkdir()
        writer = threading.Thread(target=write, args=(folder / "stdout", case.written, over))
        writer.start()
        closing.callback(writer.join)
        closing.callback(over.set)
        shipper.follow(folder)
        time.sleep(WARM_S)
        pid = shipper.process.pid
        begun, cpu, counts = time.monotonic(), cpu_s(pid), Counter(shipper.counts)
        time.sleep(seconds)
        took, used, counted = time.monotonic() - begun, cpu_s(pid) - cpu, shipper.counts - counts
    return Found(used / took, counted["shipped"] / took, counted["bytes"] / took)


def report(found: dict[Case, list[Found]]) -> None:
    """Prints each case, and what a line and a megabyte cost."""
    cpu = {case: statistics.median(one.cpu for one in runs) for case, runs in found.items()}
    for case, runs in found.items():
        lines = statistics.median(one.shipped_lines for one in runs)
        size = statistics.median(one.limited_bytes for one in runs)
        low, high = min(one.cpu for one in runs), max(one.cpu for one in runs)
        print(
            f"{case.name:<8} {cpu[case]:6.2%} of a core ({low:.2%} to {high:.2%}), "
            f"{lines:7,.0f} lines shipped and {size / 1e6:5.2f} MB counted a second"
        )
    lines = statistics.median(one.shipped_lines for one in found[SHIPPED])
    size = statistics.median(one.limited_bytes for one in found[COUNTED])
    print(f"a line that is shipped {(cpu[SHIPPED] - cpu[IDLE]) / max(1.0, lines) * 1e6:.2f} µs")
    print(f"a megabyte that is counted {(cpu[COUNTED] - cpu[IDLE]) / max(1.0, size / 1e6) * 1e6:.0f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 4 seconds; a rough figure")
    options = parser.parse_args()
    seconds, rounds = (4.0, 1) if options.quick else (options.seconds, options.rounds)
    store, telemetry = Receiver(RECEIVER), Receiver(TELEMETRY)
    found: dict[Case, list[Found]] = {IDLE: [], COUNTED: [], SHIPPED: [], LOUD: []}
    try:
        for _ in range(rounds):
            for case, runs in found.items():
                environ = {"DISTROML_TELEMETRY": telemetry.url, "DISTROML_ELASTICSEARCH": store.url}
                runs.append(measure(case, seconds, environ))
    finally:
        store.close()
        telemetry.close()
    report(found)


if __name__ == "__main__":
    main()
