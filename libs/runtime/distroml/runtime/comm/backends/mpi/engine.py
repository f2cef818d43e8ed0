"""Starts MPI operations, drives them on, and ends the waiting for those that do not end; the only caller of MPI.

Every operation is non-blocking. Whoever waits tests all that are under way, so that nothing waits for a thread to be
scheduled; where nobody waits, a thread of our own tests, so that collectives go on behind a backward pass, futures
complete and deadlines hold. One lock surrounds every call: MPI is asked for THREAD_SERIALIZED only.

The first failure breaks the world: an MPI operation cannot be taken back, its buffers stay in use, and Open MPI 4 does
not form another world in the same processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.futures import Future

from distroml.runtime.comm.backends.errors import CommunicationFailed
from distroml.runtime.comm.backends.mpi import library

_SPINS = 50
_FIRST_PAUSE_S = 20e-6
_LAST_PAUSE_S = 500e-6
_BEHIND_PAUSE_S = 200e-6
_HELPED_PAUSE_S = 0.02
_LISTEN_S = 0.25
# What a rank sent before its program ended may still be on its way.
_GONE_S = 3.0


@dataclass(eq=False, slots=True, kw_only=True)
class Operation:
    """One collective or message under way."""

    what: str
    """Told where it fails."""
    start: Callable[[], Any]
    """Makes the MPI request."""
    finish: Callable[[], None]
    """Puts the result where it belongs."""
    result: list[torch.Tensor]
    timeout_s: float
    ranks: frozenset[int] = frozenset()
    """Who takes part, as numbered in the world; empty where that is of no account."""
    begun: float = 0.0
    deadline: float = 0.0
    request: Any = None
    done: bool = False
    error: CommunicationFailed | None = None
    future: Future[Any] | None = None
    told: bool = False


@dataclass
class Engine:
    """All operations of this process."""

    _lock: threading.RLock = field(default_factory=lambda: library.lock)
    _pending: list[Operation] = field(default_factory=list[Operation])
    _abandoned: list[Operation] = field(default_factory=list[Operation])
    """What failed: MPI may still write into its buffers, so they live as long as the process."""
    _wake: threading.Event = field(default_factory=threading.Event)
    _waiting: int = 0
    _thread: threading.Thread | None = None
    _broken: str = ""
    _gone: dict[int, float] = field(default_factory=dict[int, float])
    """Since when it is known of a rank that its program has ended."""

    @property
    def lock(self) -> threading.RLock:
        """Held around every call of MPI."""
        return self._lock

    def post(self, operation: Operation) -> None:
        """Start it, after all that this process started before.

        Raises:
            CommunicationFailed: the world is broken, or MPI refused.
        """
        with self._lock:
            if self._broken:
                raise CommunicationFailed(f"{operation.what} was not begun: {self._broken}")
            why = ""
            try:
                operation.request = operation.start()
            except Exception as error:
                if not _of_mpi(error):
                    raise
                why = f"{operation.what} failed: {error}"
            else:
                operation.begun = time.monotonic()
                operation.deadline = operation.begun + operation.timeout_s
                self._pending.append(operation)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._behind, name="distroml-mpi", daemon=True)
                    self._thread.start()
        if why:
            self.break_(why)
            raise CommunicationFailed(self._broken)
        self._wake.set()

    def wait(self, operation: Operation, timeout_s: float | None = None) -> None:
        """Return once `operation` is done and its result in place.

        Raises:
            CommunicationFailed: it failed, or did not end before its deadline, or within `timeout_s` from now.
        """
        until = operation.deadline if timeout_s is None else min(operation.deadline, time.monotonic() + timeout_s)
        pause, spins = _FIRST_PAUSE_S, _SPINS
        self._helped(+1)
        try:
            while not operation.done:
                if self._drive() or operation.done:
                    continue
                if time.monotonic() > until:
                    self.break_(_overdue(operation))
                elif spins:
                    spins -= 1
                    time.sleep(0)
                else:
                    time.sleep(pause)
                    pause = min(pause * 1.5, _LAST_PAUSE_S)
        finally:
            self._helped(-1)
        if operation.error is not None:
            raise operation.error

    def future(self, operation: Operation) -> Future[Any]:
        """Completes with the tensors of `operation`, or with its error."""
        with self._lock:
            future = operation.future = operation.future or Future()
        if operation.done:
            self._tell(operation)
        # An exception that was set on a future is lost on its way through torch's C++ side; one that is raised stays.
        return future.then(_checked)

    def break_(self, why: str) -> None:
        """Everything under way fails, and nothing begins any more; from any thread, repeatable."""
        with self._lock:
            failed = self._fail(why)
        for operation in failed:
            self._tell(operation)

    def release(self, communicator: Any) -> None:
        """Free a communicator that nothing uses any more; in a broken world, or with operations under way, it stays."""
        with self._lock:
            if not self._broken and not self._pending and not library.ended():
                communicator.Free()

    def _fail(self, why: str) -> list[Operation]:
        if not self._broken:
            self._broken = why
            library.give_up()
        failed, self._pending = self._pending, []
        for operation in failed:
            operation.error = CommunicationFailed(self._broken)
            operation.done = True
        self._abandoned += failed
        return failed

    def _drive(self) -> bool:
        """Test everything under way once; whether something ended."""
        with self._lock:
            ended: list[Operation] = []
            for operation in self._pending:
                try:
                    if operation.request.Test():
                        ended.append(operation)
                except Exception as error:
                    if not _of_mpi(error):
                        raise
                    ended += self._fail(f"{operation.what} failed: {error}")
                    break
            for operation in ended:
                if operation in self._pending:
                    self._pending.remove(operation)
                    try:
                        operation.finish()
                    except Exception as error:
                        # Whoever waits for it, or behind it, would wait for ever.
                        ended += self._fail(f"{operation.what} failed at its end: {error}")
                        operation.error = CommunicationFailed(self._broken)
                    operation.done = True
        for operation in ended:
            self._tell(operation)
        return bool(ended)

    def _tell(self, operation: Operation) -> None:
        """Complete the future, once; without the lock: its callbacks may start collectives and wait for them."""
        with self._lock:
            future, told = operation.future, operation.told
            operation.told = told or future is not None
        if future is None or told:
            return
        future.set_result(operation.error or operation.result)

    def _helped(self, change: int) -> None:
        with self._lock:
            self._waiting += change

    def _behind(self) -> None:
        """The thread: drives where nobody waits, and keeps the deadlines of what nobody waits for."""
        listened = 0.0
        while True:
            if not self._pending:
                self._wake.wait()
                self._wake.clear()
                continue
            self._drive()
            with self._lock:
                late = next((o for o in self._pending if time.monotonic() > o.deadline), None)
            if late is not None:
                self.break_(_overdue(late))
            if time.monotonic() - listened > _LISTEN_S:
                listened = time.monotonic()
                self._listen(listened)
            time.sleep(_HELPED_PAUSE_S if self._waiting else _BEHIND_PAUSE_S)

    def _listen(self, now: float) -> None:
        """Give up what waits for a rank whose program has ended."""
        with self._lock:
            for rank in () if library.ended() else library.gone():
                since = self._gone.setdefault(rank, now)
                waits = next(
                    (o for o in self._pending if rank in o.ranks and now - max(since, o.begun) > _GONE_S), None
                )
                if waits is not None:
                    why = f"{waits.what} waits for rank {rank}, whose program has ended without coming to it"
                    break
            else:
                return
        self.break_(why)


def _overdue(operation: Operation) -> str:
    return (
        f"{operation.what} did not end within its {operation.timeout_s:g} s: another rank is lost, stopped, or did not "
        "come to it"
    )


def _checked(future: Future[Any]) -> Any:
    value = future.value()
    if isinstance(value, CommunicationFailed):
        raise value
    return value


def _of_mpi(error: Exception) -> bool:
    return type(error).__module__.startswith("mpi4py")
