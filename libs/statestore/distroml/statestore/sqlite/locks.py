"""The queue of processes before a write.

SQLite's own waiting sleeps up to 100 ms between tries and favours whoever wrote last. Here a writer blocks in the
kernel instead, is woken at once, and lets go by dying.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class WriteLock:
    """One writer at a time among all processes, nearly first come first served.

    There are two locks. Who wants to write first takes the turnstile, waits there for the write lock, and only
    then lets the next one into the turnstile: so a process that writes without a pause cannot pass one that waits.
    """

    def __init__(self, path: Path) -> None:
        self._turnstile = _open(path.with_name(path.name + ".queue"))
        self._write = _open(path.with_name(path.name + ".lock"))

    @contextmanager
    def held(self) -> Generator[None]:
        """Wait for the lock without limit, hold it inside the block."""
        fcntl.flock(self._turnstile, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._write, fcntl.LOCK_EX)
        finally:
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._write, fcntl.LOCK_UN)

    def close(self) -> None:
        """Release the files; they stay, since removing a lock file would split the queue."""
        os.close(self._turnstile)
        os.close(self._write)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
