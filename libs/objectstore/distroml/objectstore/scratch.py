"""Temporary files that are recognised when their writer is dead."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


class Scratch:
    """A folder of temporary files, each locked by its writer for as long as that lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def file(self) -> Generator[tuple[BinaryIO, Path]]:
        """A new file and its path; removed at the end of the block if it still has that name."""
        path, file = self._create()
        try:
            with file:
                yield file, path
        finally:
            path.unlink(missing_ok=True)

    def collect(self) -> int:
        """Remove the files whose writers are dead; returns how many."""
        self._folder.mkdir(parents=True, exist_ok=True)
        removed = 0
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                path.unlink()
                removed += 1
        return removed

    def _create(self) -> tuple[Path, BinaryIO]:
        while True:
            path = self._folder / f"{os.getpid()}-{secrets.token_hex(8)}"
            file = path.open("xb")
            # A collector may have come between creating and locking: then the file has lost its name.
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:
                return path, file
            file.close()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable; a folder that was removed meanwhile needs it no more."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
