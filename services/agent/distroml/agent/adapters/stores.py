"""The host of an attempt's TCPStores, as the agent sees it: kept alive, asked for a store per generation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from distroml.agent import storehost
from distroml.agent.adapters.held import Held, newest_living, number_of
from distroml.agent.domain.exits import ExitRecord
from distroml.agent.launch import LaunchOrder
from distroml.agent.launcher import CannotStart, Launcher
from distroml.observability import logger

log = logger(__name__)

_READY_S = 60.0
_ASK_S = 10.0


class StoreHost:
    """Lives in folders `store.<n>` below the attempt's, one per process of it.

    `on_lost` is called when the process ended unasked: its stores are gone, another one is there when `port` is
    asked next.
    """

    def __init__(
        self,
        folder: Path,
        launcher: Launcher,
        *,
        name: str,
        python: str,
        env: dict[str, str],
        address: str,
        orphan_grace_s: float,
        on_lost: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._launcher = launcher
        self._name = name
        self._python = python
        self._env = env
        self._address = address
        self._orphan_grace_s = orphan_grace_s
        self._on_lost = on_lost
        self._held: Held | None = None
        self._lock = asyncio.Lock()
        self._closing = False

    @property
    def held(self) -> Held | None:
        """The running process."""
        return self._held

    def adopt(self) -> bool:
        """Take over the process that an earlier agent started; False where none runs."""
        if (held := newest_living(self._folder, "store")) is not None:
            self._watch(held)
        return held is not None

    async def port(self, serial: int) -> int:
        """The port of the store with this number; starts the process where there is none.

        Raises:
            CannotStart: it did not come up; the text says why.
        """
        async with self._lock:
            for _ in range(2):
                held = self._held or await self._start()
                try:
                    async with asyncio.timeout(_READY_S):
                        return await self._ask(held, serial)
                except (OSError, ValueError, TimeoutError) as error:
                    reason = f"{type(error).__name__}: {error}"
                    log.warning("the store host does not answer; starting another", error=reason)
                    held.end(0, "it does not answer")
                    self._held = None
        raise CannotStart(f"the host of the job's TCPStore does not come up; see stderr in {self._folder}/store.*")

    async def close(self, *, end: bool) -> None:
        """Let go of the process, or end it."""
        self._closing = True
        if (held := self._held) is None:
            return
        if end:
            held.end(0, "the attempt is over")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(held.ended), 10)
        await held.let_go()

    async def _start(self) -> Held:
        number = max((number_of(folder) for folder in self._folder.glob("store.*")), default=0) + 1
        for old in self._folder.glob("store.*"):
            if number_of(old) < number - 3:
                shutil.rmtree(old, ignore_errors=True)
        folder = self._folder / f"store.{number}"
        folder.mkdir(parents=True)
        launched = await self._launcher.start(
            LaunchOrder(
                worker=self._name,
                incarnation=number,
                folder=str(folder),
                python=self._python,
                argv=[storehost.__file__, self._address],
                cwd=str(folder),
                env=self._env,
                log_cap_bytes=1 << 20,
                orphan_grace_s=self._orphan_grace_s,
            )
        )
        self._watch(launched.held)
        return launched.held

    def _watch(self, held: Held) -> None:
        self._held = held
        held.ended.add_done_callback(lambda ended: self._ended(held, ended))

    def _ended(self, held: Held, ended: asyncio.Future[ExitRecord]) -> None:
        if held is not self._held or ended.cancelled() or self._closing:
            return
        self._held = None
        log.warning("the store host ended; starting another", store=self._name, signal=ended.result().signal)
        self._on_lost()

    async def _ask(self, held: Held, serial: int) -> int:
        while True:
            try:
                reader, writer = await _connect(held.folder)
                break
            except OSError:
                # It still imports torch; its end would end the waiting.
                if held.ended.done():
                    raise
                await asyncio.sleep(0.01)
        try:
            writer.write(b"%d\n" % serial)
            async with asyncio.timeout(_ASK_S):
                return int(await reader.readline())
        finally:
            writer.close()


async def _connect(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{handle}/{storehost.SOCKET}")
    finally:
        os.close(handle)
