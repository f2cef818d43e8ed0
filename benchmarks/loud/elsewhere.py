"""What a deployment has on other machines: processes in the place of its servers, out of the way of the rest."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

RECEIVER = Path(__file__).parent / "receiver.py"
TELEMETRY = Path(__file__).parent / "telemetry.py"
_CPU_CLOCK = 2


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all of its threads, to the nanosecond (`clock_getcpuclockid(3)`)."""
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK)


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
        self.pid = self._process.pid
        stand_back(psutil.Process(self.pid), idle=True)
        self.bytes = self.documents = 0

    def close(self) -> None:
        """End it, and hear what it was sent."""
        told = json.loads(self._process.communicate()[0])
        self.bytes, self.documents = told["bytes"], told.get("documents", 0)
