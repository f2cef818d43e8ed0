"""The warm processes: started, kept alive, asked for forks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from asyncio.subprocess import PIPE, Process
from pathlib import Path

from distroml.agent import template
from distroml.agent.adapters.processes import Identity, read_identity
from distroml.agent.domain.warmth import TemplateKey, why_cold
from distroml.agent.launch import LaunchOrder
from distroml.observability import logger

log = logger(__name__)

_LENGTH = struct.Struct(">I")
_FORK_S = 10.0
_BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 15.0, 60.0)


class NoFork(Exception):
    """No worker came out of a template; the text says why."""


class Template:
    """One warm process, started again whenever it ends."""

    def __init__(self, key: TemplateKey, env: dict[str, str], log_path: Path) -> None:
        self.key = key
        self.ready = asyncio.Event()
        self.seconds = 0.0
        self.missing: list[str] = []
        self.failures = 0
        self.pid = 0
        self._env = env
        self._log_path = log_path
        self._process: Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="template")

    async def fork(self, order: LaunchOrder) -> Identity:
        """A worker forked from the template; raises `NoFork`."""
        async with self._one_at_a_time:
            process = self._process
            if process is None or process.stdin is None or process.stdout is None or not self.ready.is_set():
                raise NoFork("the warm process is starting again")
            body = json.dumps(order).encode()
            try:
                process.stdin.write(_LENGTH.pack(len(body)) + body)
                await process.stdin.drain()
                async with asyncio.timeout(_FORK_S):
                    answer = json.loads(await process.stdout.readline() or b'{"op": "ended"}')
            except (OSError, TimeoutError, ValueError) as error:
                self._give_up(process)
                # The fork may have happened all the same: then the worker's folder names it.
                if (identity := read_identity(Path(order["folder"]))) is not None:
                    return identity
                raise NoFork(f"the warm process did not answer: {type(error).__name__} {error}") from error
        if answer["op"] == "started":
            answer.pop("op")
            return Identity(**answer)
        if answer["op"] != "refused":
            self._give_up(process)
        raise NoFork(str(answer.get("why", "the warm process ended")))

    async def close(self) -> None:
        """End it; workers forked from it go on."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _give_up(self, process: Process) -> None:
        self.ready.clear()
        with contextlib.suppress(ProcessLookupError):
            process.kill()

    async def _run(self) -> None:
        while True:
            try:
                await self._live()
            except OSError as error:
                log.warning("no warm process", python=self.key.python, error=str(error))
            finally:
                self.ready.clear()
                if self._process is not None:
                    self._give_up(self._process)
                    await self._process.wait()
            await asyncio.sleep(_BACKOFF_S[min(self.failures, len(_BACKOFF_S) - 1)])
            self.failures += 1

    async def _live(self) -> None:
        with self._log_path.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                self.key.python,
                template.__file__,
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                env=self._env,
                cwd="/",
                start_new_session=True,
            )
        process = self._process
        self.pid = process.pid
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            code = await process.wait()
            log.warning("the warm process ended while importing", python=self.key.python, code=code)
            return
        said = json.loads(line)
        self.seconds, self.missing = float(said["seconds"]), list(said["missing"])
        log.info("warm process ready", seconds=self.seconds, missing=self.missing, threads=said["threads"])
        self.failures = 0
        self.ready.set()
        code = await process.wait()
        log.warning("the warm process ended; starting another", code=code)


class Templates:
    """At most `most` templates: the default one, which always stays, and the lately wanted ones."""

    def __init__(self, folder: Path, *, most: int = 2, wait_s: float = 20.0) -> None:
        self._folder = folder
        self._most = most
        self._wait_s = wait_s
        self._templates: dict[TemplateKey, Template] = {}
        self._default: TemplateKey | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def keep(self, key: TemplateKey, env: dict[str, str], *, default: bool = False) -> None:
        """Have a template for `key`; the one that was not wanted for longest goes if there are too many."""
        if default:
            self._default = key
        if key in self._templates:
            self._templates[key] = self._templates.pop(key)
            return
        if len(self._templates) >= self._most:
            oldest = next((k for k in self._templates if k != self._default), None)
            if oldest is None:
                return
            self._close_soon(self._templates.pop(oldest))
        self._templates[key] = Template(key, env, self._folder / "template.log")

    async def fork(self, key: TemplateKey, order: LaunchOrder) -> Identity:
        """A warm worker; raises `NoFork` saying why the worker has to start cold.

        A template that still imports is waited for: it is ready before a cold worker would be.
        """
        if reason := why_cold(key, self._templates):
            raise NoFork(reason)
        warm = self._templates[key]
        try:
            async with asyncio.timeout(self._wait_s):
                await warm.ready.wait()
        except TimeoutError:
            raise NoFork(f"the warm process was not ready after {self._wait_s:g} s") from None
        return await warm.fork(order)

    async def close(self) -> None:
        """End them all."""
        for each in self._templates.values():
            await each.close()
        self._templates.clear()

    def _close_soon(self, template: Template) -> None:
        task = asyncio.create_task(template.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
