"""Whether the kernel killed a process for want of memory. Standard library only: the holder asks."""

from __future__ import annotations

import contextlib
import errno
import os


def oom_kills(groups_of_self: str = "/proc/self/cgroup", tree: str = "/sys/fs/cgroup") -> int:
    """Processes of our control group that the kernel killed for memory; -1 where it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        with open(groups_of_self) as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
        for _, controllers, path in groups:
            if "memory" in controllers.split(","):
                return _counter(f"{tree}/memory{path}/memory.oom_control")
        for hierarchy, _, path in groups:
            if hierarchy == "0":
                return _counter(f"{tree}{path}/memory.events")
    return -1


def _counter(path: str) -> int:
    with open(path) as file:
        for line in file:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return -1


def oom_evidence(pid: int, before: int, after: int) -> str:
    """Why a SIGKILL counts as out of memory, or empty: the kernel's log about this process, else its counter.

    `before` and `after` are what `oom_kills` said when the process began and has ended.
    """
    with contextlib.suppress(OSError):
        log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        try:
            for _ in range(100_000):
                try:
                    line = os.read(log, 8192).decode(errors="replace")
                except OSError as error:
                    if error.errno == errno.EPIPE:
                        continue
                    break
                if f"Killed process {pid} (" in line:
                    return line.partition(";")[2].split("\n", 1)[0][:400]
        finally:
            os.close(log)
    return f"memory oom_kill counter went from {before} to {after}" if 0 <= before < after else ""
