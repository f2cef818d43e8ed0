"""One supervised service process."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from distroml.observability import names

_OF_GRPC = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ \w+\.cc:\d+\] ")
_PR_SET_PDEATHSIG = 1
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LOG_KEEP_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class ServiceProcess:
    """A service, its process, and when to start it again.

    Times are the supervisor's monotonic seconds. `healthy_at` is the last good answer, 0 before the first.
    """

    name: str
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    healthy_at: float = 0.0
    restarts: int = 0
    not_before: float = 0.0
    failures: int = 0
    ever_healthy: bool = False

    def start(self, now: float) -> None:
        """Start the process; its output goes to the log file, and it is told to end if we die."""
        if self.log.exists() and self.log.stat().st_size > _LOG_KEEP_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"distroml.{self.name}"],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Its own session: Ctrl-C in the terminal ends us, and we end the services in order.
                start_new_session=True,
                preexec_fn=_end_with_parent(os.getpid()),
            )
        self.started_at, self.healthy_at = now, 0.0

    def ended(self, now: float) -> int | None:
        """The exit code if the process ended since the last look; schedules the next start with back-off."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        if self.healthy_at and now - self.started_at > 30:
            self.failures = 0
        self.not_before = now + _BACKOFF_S[min(self.failures, len(_BACKOFF_S) - 1)]
        self.failures += 1
        self.restarts += 1
        return code

    def silent_for(self, now: float) -> float:
        """Seconds since the last sign of health."""
        return now - max(self.healthy_at, self.started_at)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process still runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def last_words(self) -> str:
        """The log's last line; of a JSON record, its message and the error that it carries."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 65_536))
            lines = file.read().decode("utf-8", "replace").splitlines()
        # gRPC's core may add words of its own about threads that end with the process.
        lines = [line for line in lines if not _OF_GRPC.match(line)] or lines
        if not lines:
            return "it said nothing"
        try:
            record = cast("object", json.loads(lines[-1]))
        except ValueError:
            return lines[-1]
        if not isinstance(record, dict):
            return lines[-1]
        fields = cast("dict[str, object]", record)
        return " ".join(str(fields[key]) for key in (names.MESSAGE, names.ERROR_MESSAGE) if key in fields)


def _end_with_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def in_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(0)

    return in_child
