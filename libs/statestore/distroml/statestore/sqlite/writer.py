"""Group commit: one thread takes the callers' transactions in batches into one SQLite transaction, one sync for all."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distroml.statestore.failpoint import hit
from distroml.statestore.port import StateStoreDown, StateStoreFull
from distroml.statestore.sqlite.errors import translate
from distroml.statestore.sqlite.locks import WriteLock
from distroml.statestore.sqlite.schema import connect
from distroml.statestore.sqlite.tables import SqliteTables

MAX_BATCH = 128
MAX_WAITING = 4096
WRITE_TIMEOUT_S = 30.0


class Job:
    """One caller's transaction: `run` over the tables, its outcome, and how its caller is told."""

    __slots__ = ("abandoned", "error", "loop", "run", "tell", "value")

    def __init__(
        self, run: Callable[[SqliteTables], Any], tell: Callable[[Job], None], loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self.run, self.tell, self.loop = run, tell, loop
        self.value: Any = None
        self.error: Exception | None = None
        self.abandoned = False


class Writer:
    """The thread and its queue. `wrote` is called after every batch that reached the disk.

    Attributes:
        trouble: why the last batch could not be written, empty where it was.
    """

    def __init__(self, path: Path, lock: WriteLock, changes_kept: int, wrote: Callable[[], None]) -> None:
        self._path, self._lock, self._changes_kept, self._wrote = path, lock, changes_kept, wrote
        self._connection = connect(path, writes=True)
        self._jobs: deque[Job] = deque()
        self._some = threading.Condition()
        self._ending = False
        self.trouble = ""
        self._thread = threading.Thread(target=self._work, name="sqlite-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            StateStoreFull: too many wait already; nothing is queued.
            StateStoreDown: the writer is closed.
        """
        with self._some:
            if self._ending:
                raise StateStoreDown(f"{self._path}: the store is closed")
            if len(self._jobs) >= MAX_WAITING:
                raise StateStoreFull(f"{self._path}: {MAX_WAITING} writes wait already; try again later")
            self._jobs.append(job)
            self._some.notify()

    async def write(self, run: Callable[[SqliteTables], Any]) -> Any:
        """Run as one transaction and wait, at most `WRITE_TIMEOUT_S`, until it is durable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def tell(job: Job) -> None:
            if future.done():
                return
            if job.error is None:
                future.set_result(job.value)
            else:
                future.set_exception(job.error)

        def give_up() -> None:
            job.abandoned = True
            if not future.done():
                waited = (
                    f"{self._path}: not written within {WRITE_TIMEOUT_S:g} s; is another process stopped mid-write?"
                )
                future.set_exception(StateStoreDown(waited))

        job = Job(run, tell, loop)
        self.submit(job)
        timer = loop.call_later(WRITE_TIMEOUT_S, give_up)
        try:
            return await future
        finally:
            timer.cancel()

    def write_blocking(self, run: Callable[[SqliteTables], Any]) -> Any:
        """`write` for a plain thread."""
        done = threading.Event()
        job = Job(run, lambda _: done.set(), None)
        self.submit(job)
        if not done.wait(WRITE_TIMEOUT_S):
            job.abandoned = True
            raise StateStoreDown(f"{self._path}: not written within {WRITE_TIMEOUT_S:g} s")
        if job.error is not None:
            raise job.error
        return job.value

    def close(self) -> None:
        """Finish what is queued, then end the thread; blocks."""
        with self._some:
            self._ending = True
            self._some.notify()
        self._thread.join(WRITE_TIMEOUT_S)
        if not self._thread.is_alive():
            # The last connection to close folds the WAL into the file: that is a write like any other.
            with self._lock.held():
                self._connection.close()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                with self._lock.held():
                    self._write_batch(batch)
            except Exception as error:
                # The thread must outlive whatever goes wrong: without it every later write would hang.
                self._roll_back()
                failure = StateStoreDown(f"{self._path}: {error}")
                for job in batch:
                    job.value, job.error = None, failure
            self._wrote()
            _tell(batch)

    def _next_batch(self) -> list[Job]:
        with self._some:
            while not self._jobs and not self._ending:
                self._some.wait()
            return [self._jobs.popleft() for _ in range(min(MAX_BATCH, len(self._jobs)))]

    def _write_batch(self, batch: Sequence[Job]) -> None:
        try:
            self._transact(batch)
            self.trouble = ""
        except (sqlite3.Error, OSError) as error:
            self._roll_back()
            failure = translate(self._path, error)
            self.trouble = str(failure)
            if isinstance(failure, StateStoreFull) and len(batch) > 1:
                # A small write may still fit where the batch did not.
                for job in batch:
                    self._write_batch([job])
                return
            for job in batch:
                job.value, job.error = None, failure

    def _roll_back(self) -> None:
        """Leave no transaction open; with a new connection where SQLite cannot undo this one's."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._connection.close()
            self._connection = connect(self._path, writes=True)

    def _transact(self, batch: Sequence[Job]) -> None:
        hit("sqlite.statement")
        self._connection.execute("BEGIN IMMEDIATE")
        tables = SqliteTables(self._connection, self._changes_kept)
        for job in batch:
            if job.abandoned:
                continue
            job.value, job.error = None, None
            counters = tables.savepoint()
            try:
                job.value = job.run(tables)
            except (sqlite3.Error, OSError):
                raise
            except Exception as refusal:
                job.error = refusal
                tables.undo(counters)
            else:
                tables.release()
        tables.store_counters()
        tables.execute("COMMIT")
        hit("sqlite.statement")


def _tell(batch: Sequence[Job]) -> None:
    """Tell each caller, with one wake-up per event loop."""
    loops: dict[asyncio.AbstractEventLoop | None, list[Job]] = {}
    for job in batch:
        loops.setdefault(job.loop, []).append(job)
    for loop, jobs in loops.items():
        if loop is None:
            _tell_all(jobs)
            continue
        try:
            loop.call_soon_threadsafe(_tell_all, jobs)
        except RuntimeError:  # the callers' loop was closed under them: nobody is left to be told
            continue


def _tell_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.tell(job)
