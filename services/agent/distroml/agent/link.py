"""The unix socket on which workers talk to the agent.

A connection is a known worker's or it is closed: its `Hello` must name a worker that the agent started, its current
incarnation, and the process that the kernel says is at the other end. Garbage ends that connection and nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from distroml.observability import logger
from distroml.workerlink import PROTOCOL, Frames, Hello, LinkError, ToAgent, ToWorker, decode_to_agent, encode

log = logger(__name__)

MAX_PATH_BYTES = 107
"""What a unix socket's address can hold."""

_HELLO_S = 10.0
_MAX_UNSENT_BYTES = 8 << 20
_CREDENTIALS = struct.Struct("3i")


class Peer(Protocol):
    """Whoever looks after a worker."""

    def on_hello(self, hello: Hello) -> None:
        """The worker is connected; messages to it arrive from now on."""
        ...

    def on_message(self, message: ToAgent) -> None:
        """The worker said something."""
        ...

    def on_link_lost(self) -> None:
        """The connection ended; the worker may connect again."""
        ...


class _Expected:
    def __init__(self, incarnation: int, peer: Peer) -> None:
        self.incarnation = incarnation
        self.peer = peer
        self.pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.writer: asyncio.StreamWriter | None = None


class LinkServer:
    """Serves the socket; routes each worker's messages to its `Peer`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._workers: dict[str, _Expected] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()
        self.refused = 0

    async def start(self) -> None:
        """Listen, with mode 0600; whatever lay under the name before is replaced."""
        self.path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self.path, backlog=512)
        finally:
            os.umask(before)

    async def close(self) -> None:
        """Stop listening and end all connections; workers connect to the next agent."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            writer.close()
        self.path.unlink(missing_ok=True)

    def expect(self, worker: str, incarnation: int, peer: Peer) -> None:
        """A process of `worker` is about to start; its process id follows by `is_pid`."""
        self.forget(worker)
        self._workers[worker] = _Expected(incarnation, peer)

    def is_pid(self, worker: str, pid: int) -> None:
        """The expected process is this one."""
        expected = self._workers.get(worker)
        if expected is not None and not expected.pid.done():
            expected.pid.set_result(pid)

    def forget(self, worker: str) -> None:
        """The worker's process is gone."""
        expected = self._workers.pop(worker, None)
        if expected is not None:
            expected.pid.cancel()
            if expected.writer is not None:
                expected.writer.close()

    def tell(self, worker: str, message: ToWorker) -> bool:
        """Send `message`; False where the worker is not connected or does not read."""
        expected = self._workers.get(worker)
        if expected is None or expected.writer is None or expected.writer.is_closing():
            return False
        if expected.writer.transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            log.warning("a worker does not read its link; closing it", worker=worker)
            expected.writer.close()
            return False
        expected.writer.write(encode(message))
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        name = "?"
        try:
            frames = Frames()
            async with asyncio.timeout(_HELLO_S):
                hello, early = await _read_hello(reader, frames)
                name = hello.worker
                expected = await self._known(hello, _peer_pid(writer))
            await self._converse(expected, hello, early, frames, reader, writer)
        except (LinkError, TimeoutError) as error:
            self.refused += 1
            log.warning("closed a connection on the link", worker=name, reason=str(error) or "no Hello in time")
        except OSError:
            pass
        except asyncio.CancelledError:
            # The server is closing; asyncio's stream server would report the cancellation as an error.
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _known(self, hello: Hello, pid: int) -> _Expected:
        if hello.protocol != PROTOCOL:
            raise LinkError(f"protocol {hello.protocol}, this agent speaks {PROTOCOL}: the installation changed")
        expected = self._workers.get(hello.worker)
        if expected is None:
            raise LinkError("this agent has no such worker")
        if hello.incarnation != expected.incarnation:
            raise LinkError(f"incarnation {hello.incarnation} is over; {expected.incarnation} runs")
        try:
            known = await asyncio.shield(expected.pid)
        except asyncio.CancelledError:
            raise LinkError("the worker ended") from None
        if pid != known or hello.pid != known:
            raise LinkError(f"process {pid} says it is {hello.pid}; the worker is process {known}")
        return expected

    async def _converse(
        self,
        expected: _Expected,
        hello: Hello,
        early: list[bytes],
        frames: Frames,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if expected.writer is not None:
            expected.writer.close()
        expected.writer = writer
        expected.peer.on_hello(hello)
        try:
            for body in early:
                expected.peer.on_message(decode_to_agent(body))
            while data := await reader.read(1 << 16):
                for body in frames.feed(data):
                    expected.peer.on_message(decode_to_agent(body))
        finally:
            if expected.writer is writer:
                expected.writer = None
                expected.peer.on_link_lost()


async def _read_hello(reader: asyncio.StreamReader, frames: Frames) -> tuple[Hello, list[bytes]]:
    while data := await reader.read(1 << 16):
        bodies = list(frames.feed(data))
        if bodies:
            first = decode_to_agent(bodies[0])
            if not isinstance(first, Hello):
                raise LinkError(f"the first message is a {type(first).__name__}, not Hello")
            return first, bodies[1:]
    raise LinkError("the connection ended before Hello")


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(raw)[0]


def socket_path(node_folder: Path, environ: Mapping[str, str]) -> Path:
    """Where the link's socket goes: into the node's folder, or a short private one where its name is too long.

    Raises:
        PermissionError: the short folder exists and is somebody else's, or open to others.
    """
    path = node_folder / "link.sock"
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(node_folder)).hexdigest()[:12]
    base = Path(environ.get("XDG_RUNTIME_DIR") or "/tmp")
    folder = base / f"distroml-{os.getuid()}-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder of user {os.getuid()} with mode 0700; remove it")
    return folder / "link.sock"
