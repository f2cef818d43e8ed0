"""One disposable SQLite file: whole transactions in a thread of its own, reads in another, begun anew when damaged.

The event loop never touches SQLite. A file that is damaged, or of another format, is moved aside and begun empty, also
while it is in use.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from distroml.observability import logger
from distroml.telemetry.adapters.database import Layout, open_database, open_reader, set_aside
from distroml.telemetry.history.port import NotWritten, Rebuilt

log = logger(__name__)

R = TypeVar("R")


class SqliteFile:
    """Enter it before use.

    Attributes:
        begun_anew: why this process found no usable file, or empty.
        epoch: grows whenever the file begins anew while the process lives.
        on_reset: called in the writing thread when what was remembered of the file no longer holds: after a
            transaction that failed, and after the file began anew.
    """

    def __init__(self, path: Path, layout: Layout, *, on_reset: Callable[[], None] = lambda: None) -> None:
        self.path, self._layout, self.on_reset = path, layout, on_reset
        self._write_thread = ThreadPoolExecutor(1, thread_name_prefix=f"{path.stem}-write")
        self._read_thread = ThreadPoolExecutor(1, thread_name_prefix=f"{path.stem}-read")
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._beginning = asyncio.Lock()
        self.begun_anew = ""
        self.epoch = 0

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().run_in_executor(self._write_thread, self._open)
        return self

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._read_thread, self._close_reader)
        await loop.run_in_executor(self._write_thread, self._close_writer)
        self._read_thread.shutdown()
        self._write_thread.shutdown()

    async def write(self, change: Callable[[sqlite3.Connection], R]) -> R:
        """Run `change` in one transaction; whole or not at all.

        Raises:
            NotWritten: the file cannot be written now (disk full, say).
            Rebuilt: it was damaged and has begun anew, without the change.
        """
        loop, epoch = asyncio.get_running_loop(), self.epoch
        try:
            return await loop.run_in_executor(self._write_thread, self._transaction, change)
        except sqlite3.OperationalError as error:
            raise NotWritten(f"{self.path.name} cannot be written: {error}") from error
        except sqlite3.DatabaseError as error:
            await self._begin_anew(str(error), epoch)
            raise Rebuilt(str(error)) from error

    async def read(self, query: Callable[[sqlite3.Connection], R]) -> R:
        """Run `query` on what was committed; once more where the file was damaged and has begun anew."""

        def run() -> R:
            if self._reader is None:
                self._reader = open_reader(self.path)
            return query(self._reader)

        loop, epoch = asyncio.get_running_loop(), self.epoch
        try:
            return await loop.run_in_executor(self._read_thread, run)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            await self._begin_anew(str(error), epoch)
            return await loop.run_in_executor(self._read_thread, run)

    async def outside(self, work: Callable[[], R]) -> R:
        """Run `work` while no transaction is open and nobody reads: both connections are closed, until it is done."""
        closed, done = threading.Event(), threading.Event()

        def stand_still() -> None:
            # A read in between would open the file that `work` is about to replace, and go on with it for ever.
            try:
                self._close_reader()
            finally:
                closed.set()
            done.wait()

        def alone() -> R:
            closed.wait()
            self._close_writer()
            try:
                return work()
            finally:
                self._open()

        self._read_thread.submit(stand_still)
        working = self._write_thread.submit(alone)
        # Also where it never began, since whoever asked was cancelled.
        working.add_done_callback(lambda _: done.set())
        return await asyncio.wrap_future(working)

    def _transaction(self, change: Callable[[sqlite3.Connection], R]) -> R:
        if self._writer is None:
            self._open()
        assert self._writer is not None
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            result = change(self._writer)
            self._writer.execute("COMMIT")
            return result
        except BaseException:
            self.on_reset()
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def _open(self) -> None:
        self._writer, self.begun_anew = open_database(self.path, self._layout)

    async def _begin_anew(self, why: str, epoch: int) -> None:
        """Once for all who met the damage in `epoch`: the last of them must not set the new file aside."""

        def set_it_aside() -> None:
            if self.path.exists():
                log.error("the file is damaged and begins anew", why=why, moved_to=set_aside(self.path).name)

        async with self._beginning:
            if self.epoch == epoch:
                await self.outside(set_it_aside)
                self.epoch += 1

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _close_writer(self) -> None:
        self.on_reset()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
