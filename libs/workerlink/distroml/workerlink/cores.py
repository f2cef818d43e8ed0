"""How many cores are ours: an agent divides them among its workers, and a worker counts what is left, by the same."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

_CGROUP2 = "0::"


def usable_cores() -> int:
    """The cores that this process may keep busy, 1 or more: a container or `taskset` may give it few of many."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return within_quota(allowed)


def within_quota(allowed: int, root: Path = Path("/")) -> int:
    """Of `allowed` cores those that the CPU quotas of this process's cgroup (v2), and of the ones around it, leave.

    A part of a core counts as one: two threads on 1.5 cores finish before one thread does. `root` has `proc` and `sys`.
    """
    mount = root / "sys/fs/cgroup"
    group = mount / _own_group(root / "proc/self/cgroup")
    around = [group, *group.parents]
    quotas = [_quota(folder / "cpu.max") for folder in around[: around.index(mount) + 1]]
    return max(1, min([allowed, *(quota for quota in quotas if quota is not None)]))


def _own_group(told: Path) -> PurePosixPath:
    """This process's cgroup below the mount; the mount itself, as in a container, where nothing says otherwise."""
    for line in _text(told).splitlines():
        # One from outside of our namespace is told as `/../…`, and the mount has nothing of it.
        if line.startswith(_CGROUP2) and ".." not in line:
            return PurePosixPath(line.removeprefix(_CGROUP2).lstrip("/"))
    return PurePosixPath()


def _quota(file: Path) -> int | None:
    """Cores by `QUOTA PERIOD` in microseconds, rounded up; None for `max`, and where there is no such file."""
    try:
        quota, period = map(int, _text(file).split())
        return -(-quota // period)
    except (ValueError, ZeroDivisionError):
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
