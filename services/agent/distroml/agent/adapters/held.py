"""The agent's end of the conversation with one holder."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import msgspec

from distroml.agent.adapters.processes import Identity, kill_session, read_identity
from distroml.agent.domain.exits import ExitRecord
from distroml.workerlink import environment as names

_CONNECT_S = 5.0


class _Exit(msgspec.Struct, frozen=True, kw_only=True):
    code: int
    signal: int
    oom: str = ""
    ended_by: str = ""
    ended_at_ms: int = 0


class _Said(msgspec.Struct, frozen=True, kw_only=True):
    op: str
    record: _Exit | None = None


class Held:
    """One process under its holder. `ended` tells its exit record as soon as the holder says it."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder = folder
        self.identity = identity
        self.ended: asyncio.Future[ExitRecord] = asyncio.get_running_loop().create_future()
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: list[bytes] = []
        self._task = asyncio.create_task(self._run(), name=f"holder of {identity.worker}")

    def end(self, grace_s: float, why: str) -> None:
        """SIGTERM, then SIGKILL after `grace_s`; 0: SIGKILL at once. `why` is kept in the exit record."""
        if grace_s <= 0:
            self._say({"op": "kill", "signal": 9, "why": why})
        else:
            self._say({"op": "end", "grace_s": grace_s, "why": why})

    def heartbeat(self) -> None:
        """Tell the holder that its worker is not an orphan."""
        self._say({"op": "heartbeat"})

    async def let_go(self) -> None:
        """Stop watching; the holder and its worker go on."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _say(self, message: dict[str, object]) -> None:
        line = msgspec.json.encode(message) + b"\n"
        if self._writer is not None:
            self._writer.write(line)
        elif len(self._waiting) < 100:
            self._waiting.append(line)

    async def _run(self) -> None:
        try:
            while not self.ended.done():
                record = await self._converse()
                if record is not None:
                    self._tell(record)
                elif not self.identity.holder_lives:
                    self._tell(self._lost())
                else:
                    # Another agent took the holder over for a moment, or it is stopped.
                    await asyncio.sleep(0.2)
        finally:
            if self._writer is not None:
                self._writer.close()

    def _tell(self, record: ExitRecord) -> None:
        if not self.ended.done():
            self.ended.set_result(record)

    async def _converse(self) -> ExitRecord | None:
        if (written := read_exit(self.folder)) is not None:
            return written
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, self._writer = await _connect(self.folder)
        except (OSError, TimeoutError):
            return read_exit(self.folder)
        try:
            self._writer.write(b'{"op":"hello"}\n')
            for line in self._waiting:
                self._writer.write(line)
            self._waiting.clear()
            while line := await reader.readline():
                said = msgspec.json.decode(line, type=_Said)
                if said.op == "exited" and said.record is not None:
                    return _record(said.record)
        except (OSError, ValueError, msgspec.MsgspecError):
            pass
        finally:
            self._writer.close()
            self._writer = None
        return read_exit(self.folder)

    def _lost(self) -> ExitRecord:
        written = read_exit(self.folder)
        if written is not None:
            return written
        kill_session(self.identity.worker_pid, f"{names.WORKER}={self.identity.worker}")
        return ExitRecord(lost=True, signal=9)


async def _connect(folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    # A unix socket's name has at most 107 bytes, a data folder's may have more: name it through the folder's handle.
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{handle}/holder.sock")
    finally:
        os.close(handle)


def number_of(folder: Path) -> int:
    """N of a helper's folder `kind.N`."""
    return int(folder.name.partition(".")[2])


def newest_living(folder: Path, kind: str) -> Held | None:
    """The helper process of this kind that an earlier agent started last below `folder`; None where none runs."""
    for one in sorted(folder.glob(f"{kind}.*"), key=number_of, reverse=True):
        identity = read_identity(one)
        if identity is not None and read_exit(one) is None and identity.holder_lives:
            return Held(one, identity)
    return None


def read_exit(folder: Path) -> ExitRecord | None:
    """The exit record in `folder`, None while there is none."""
    try:
        return _record(msgspec.json.decode((folder / "exit.json").read_bytes(), type=_Exit))
    except (OSError, msgspec.MsgspecError):
        return None


def _record(said: _Exit) -> ExitRecord:
    return ExitRecord(
        code=said.code, signal=said.signal, oom=said.oom, ended_by=said.ended_by, ended_at_ms=said.ended_at_ms
    )
