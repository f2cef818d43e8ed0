"""How processes of jobs come into being: a port, and the launcher of plain processes.

A launcher for containers or clusters takes the same `LaunchOrder` and gives back the same `Launched`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from distroml.agent import launch
from distroml.agent.adapters.held import Held
from distroml.agent.adapters.processes import Identity
from distroml.agent.adapters.templates import NoFork, Templates
from distroml.agent.domain.warmth import key_of
from distroml.agent.launch import LaunchOrder


class CannotStart(Exception):
    """The process could not be made; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that runs under its holder."""

    held: Held
    start: str
    """`warm` or `cold`."""
    why_cold: str
    seconds: float


class Launcher(Protocol):
    """Starts processes."""

    async def start(self, order: LaunchOrder, *, warm: bool = True) -> Launched:
        """Start one; it runs when this returns. Not `warm`: it needs nothing that takes long to import.

        Raises `CannotStart`.
        """
        ...

    async def close(self) -> None:
        """Let go of what only the launcher needs; started processes go on."""
        ...


class ProcessLauncher:
    """Processes of this machine and user: forked from a template where one fits, else fresh."""

    def __init__(self, templates: Templates | None) -> None:
        self._templates = templates
        self._children: set[int] = set()
        self._starting: set[asyncio.Future[Identity]] = set()

    async def start(self, order: LaunchOrder, *, warm: bool = True) -> Launched:
        """See `Launcher.start`."""
        began = time.monotonic()
        self._reap()
        identity, reason = await self._warm(order) if warm else (None, "it needs no warm process")
        if identity is None:
            starting = asyncio.ensure_future(asyncio.to_thread(self._cold, order))
            self._starting.add(starting)
            starting.add_done_callback(self._starting.discard)
            # Whoever waits may be cancelled; the start may not, it is half done in a thread.
            identity = await asyncio.shield(starting)
        held = Held(Path(order["folder"]), identity)
        return Launched(held, "cold" if reason else "warm", reason, time.monotonic() - began)

    async def close(self) -> None:
        """See `Launcher.close`."""
        if self._starting:
            await asyncio.wait(self._starting)
        if self._templates is not None:
            await self._templates.close()

    async def _warm(self, order: LaunchOrder) -> tuple[Identity | None, str]:
        if self._templates is None:
            return None, "warm processes are switched off"
        key = key_of(order["python"], os.getuid(), order["env"])
        try:
            return await self._templates.fork(key, order), ""
        except NoFork as error:
            # The next worker of the kind finds a warm process.
            self._templates.keep(key, dict(key.environment) | _path(order["env"]))
            return None, str(error)

    def _cold(self, order: LaunchOrder) -> Identity:
        order_read, order_write = os.pipe2(os.O_CLOEXEC)
        reply_read, reply_write = os.pipe2(os.O_CLOEXEC)
        program = [sys.executable, "-S", "-E", "-s", launch.__file__]
        null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        try:
            pid = os.posix_spawn(
                sys.executable,
                program,
                _path(os.environ),
                file_actions=[(os.POSIX_SPAWN_DUP2, order_read, 0), (os.POSIX_SPAWN_DUP2, reply_write, 1), null],
                setsid=True,
            )
        except OSError as error:
            os.close(order_write)
            os.close(reply_read)
            raise CannotStart(f"cannot make a process: {error.strerror}; close others or raise the limit") from error
        finally:
            os.close(order_read)
            os.close(reply_write)
        self._children.add(pid)
        with os.fdopen(order_write, "wb") as orders, contextlib.suppress(BrokenPipeError):
            orders.write(json.dumps(order).encode())
        with os.fdopen(reply_read, "rb") as replies:
            line = replies.readline()
        if not line:
            raise CannotStart(f"the holder of {order['worker']} ended at once; is {order['folder']} writable?")
        answer = json.loads(line)
        answer.pop("op")
        return Identity(**answer)

    def _reap(self) -> None:
        for pid in list(self._children):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            self._children.discard(pid)


def _path(env: Mapping[str, str]) -> dict[str, str]:
    return {name: env[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in env}
