"""A worker's output: from its pipes into bounded files. Standard library only: the holder's."""

from __future__ import annotations

import os

CHUNK_BYTES = 256 * 1024


class Output:
    """One pipe of the worker and the file that keeps its first `cap` bytes."""

    def __init__(self, name: str, fd: int, cap: int) -> None:
        self.name = name
        self.fd = fd
        self.kept = 0
        self.dropped = 0
        self._cap = cap
        os.set_blocking(fd, False)
        self._file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def pump(self) -> bool:
        """Move what is there; False at the end of the pipe."""
        try:
            data = os.read(self.fd, CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        room = max(0, self._cap - self.kept)
        self._keep(data[:room])
        self.dropped += max(0, len(data) - room)
        return True

    def _keep(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.write(self._file, view)
            except OSError:
                # A full disk costs output, never the worker.
                self.dropped += len(view)
                return
            self.kept += written
            view = view[written:]


def write_whole(path: str, data: bytes) -> None:
    """All of it or nothing, and durable."""
    fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # A disk that is nearly full takes a part; the rest is refused.
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(path + ".tmp", path)
    folder = os.open(".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
