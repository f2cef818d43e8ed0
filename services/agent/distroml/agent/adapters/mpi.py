"""The mpirun of an attempt, as the agent sees it: one per generation, asked for the seat of each rank."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from pathlib import Path

import msgspec

from distroml.agent import mpihost
from distroml.agent.adapters.held import Held, newest_living
from distroml.agent.adapters.processes import tail
from distroml.agent.domain.exits import ExitRecord
from distroml.agent.launch import LaunchOrder
from distroml.agent.launcher import CannotStart, Launcher

_SEATED_S = 60.0
_CHECK_S = 60.0
_POLL_S = 0.02
_END_S = 5.0


class MpiUnavailable(Exception):
    """MPI is missing on this node; the text says what to install."""


class MpiHost:
    """Lives in folders `mpi.<generation>` below the attempt's."""

    def __init__(self, folder: Path, launcher: Launcher, *, name: str, python: str, orphan_grace_s: float) -> None:
        self._folder = folder
        self._launcher = launcher
        self._name = name
        self._python = python
        self._orphan_grace_s = orphan_grace_s
        self._held: Held | None = None
        self._lock = asyncio.Lock()

    def adopt(self) -> None:
        """Take over the mpirun that an earlier agent started."""
        self._held = newest_living(self._folder, "mpi")

    @property
    def ended(self) -> ExitRecord | None:
        """How the newest mpirun ended, where nobody here ended it."""
        held = self._held
        return held.ended.result() if held is not None and held.ended.done() and not held.ended.cancelled() else None

    def heartbeat(self) -> None:
        """Tell the holder that somebody is there."""
        if self._held is not None:
            self._held.heartbeat()

    async def seat(self, generation: int, count: int, rank: int, env: Mapping[str, str]) -> dict[str, str]:
        """The variables that make a process this rank of the generation's `count`; starts mpirun where none runs.

        Raises:
            CannotStart: it gave no seats; the text says why.
        """
        async with self._lock:
            if self._held is None or self._held.folder != self._folder / f"mpi.{generation}":
                await self._end()
                self._held = await self._start(generation, count, env)
        return await _seat(self._held, rank)

    async def close(self, *, end: bool) -> None:
        """Let go of mpirun, or end it."""
        if end:
            await self._end()
        elif self._held is not None:
            await self._held.let_go()

    async def _start(self, generation: int, count: int, env: Mapping[str, str]) -> Held:
        folder = self._folder / f"mpi.{generation}"
        try:
            folder.mkdir()
        except FileExistsError:
            raise CannotStart(f"the mpirun of generation {generation} has ended, and its ranks with it") from None
        launched = await self._launcher.start(
            LaunchOrder(
                worker=self._name,
                incarnation=generation,
                folder=str(folder),
                python=self._python,
                argv=[mpihost.__file__, "run", str(count)],
                cwd=str(folder),
                env=dict(env),
                log_cap_bytes=1 << 20,
                orphan_grace_s=self._orphan_grace_s,
            ),
            warm=False,
        )
        return launched.held

    async def _end(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        # Politely: it has files in /tmp and /dev/shm to remove, those of killed ranks among them.
        held.end(_END_S, "its generation is over")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(held.ended), 2 * _END_S)
        await held.let_go()


async def why_not(python: str, env: Mapping[str, str]) -> str:
    """Why ranks of this interpreter cannot run over MPI here, and what to install; empty where they can."""
    # As a file of a user's interpreter, which need not have this package.
    process = await asyncio.create_subprocess_exec(
        python, mpihost.__file__, "check", stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=dict(env), cwd="/"
    )
    try:
        async with asyncio.timeout(_CHECK_S):
            out, err = await process.communicate()
    except TimeoutError:
        return f"looking for mpi4py took {python} longer than {_CHECK_S:g} s"
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode == mpihost.LACKING:
        return _last_line(out)
    if process.returncode:
        return f"{python} ends with {process.returncode} when it looks for mpi4py: {_last_line(err)}"
    return ""


async def _seat(held: Held, rank: int) -> dict[str, str]:
    path, until = held.folder / f"rank.{rank}", time.monotonic() + _SEATED_S
    while True:
        with contextlib.suppress(FileNotFoundError):
            return msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        if held.ended.done():
            raise CannotStart(f"mpirun ended before its ranks began: {_complaint(held.folder)}")
        if time.monotonic() > until:
            raise CannotStart(f"mpirun gave rank {rank} no place within {_SEATED_S:g} s: {_complaint(held.folder)}")
        await asyncio.sleep(_POLL_S)


def _last_line(text: bytes) -> str:
    return text.decode(errors="replace").strip().rpartition("\n")[2]


def _complaint(folder: Path) -> str:
    """What mpirun said, without the rules that it draws around it."""
    lines = [line.strip() for line in tail(folder / "stderr").splitlines() if line.strip(" -")]
    return " ".join(lines)[:1000] or f"it said nothing; see {folder}{os.sep}exit.json"
