"""One server as a process: ready when `begin` returns, and ended by whoever began it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.stack.install import cache_folder
from deploy.stack.owner import Owner, owner_of, record
from deploy.stack.server import Server, StackError
from distroml.cli.plane.ports import free_ports

READY_S = 180.0
_POLL_S = 0.05
_TRIES = 3
_LOG_TAIL_LINES = 20


@dataclass(slots=True)
class Running:
    """A server that was begun here."""

    server: Server
    folder: Path
    programs: Path
    ports: Mapping[str, int]
    process: subprocess.Popen[bytes]
    owner: Owner
    log_before: int = 0
    """Bytes of the log that earlier processes wrote."""

    @property
    def port(self) -> int:
        """The clients' port."""
        return self.ports[self.server.ports[0]]

    @property
    def pid(self) -> int:
        """Of the process now; another one after `restart`."""
        return self.process.pid

    def log(self) -> str:
        """What it printed."""
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """End it in order, by force after 20 s; nothing where it has ended."""
        self.owner.end()
        self.process.wait()

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Begin it again at the same ports and data, ended or not; returns when it is ready."""
        self.stop()
        again = _launch(self.server, self.programs, self.folder, self.ports)
        self.process, self.owner = again.process, again.owner
        _wait_ready(self)


@contextmanager
def running(
    server: Server, folder: Path, *, cache: Path | None = None, ports: Mapping[str, int] | None = None
) -> Generator[Running]:
    """The server with its data below `folder`, ready; ended with the block. Installs it where that is needed."""
    begun = begin(server, folder, cache=cache, ports=ports)
    try:
        yield begun
    finally:
        begun.stop()


def begin(
    server: Server, folder: Path, *, cache: Path | None = None, ports: Mapping[str, int] | None = None
) -> Running:
    """Start the server and wait until it is ready; raises `StackError`, with nothing left running.

    Args:
        server: which.
        folder: for its data, configuration and log; what lies there is taken up again.
        cache: where programs are installed; the user's cache folder by default.
        ports: where to listen; free ones by default.
    """
    programs = server.install(cache or cache_folder())
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if (owner := owner_of(folder)) and owner.alive:
        raise StackError(f"{folder} is served by process {owner.pid} already: end that one first, or take another")
    for left in reversed(range(_TRIES)):
        chosen = ports or dict(zip(server.ports, free_ports(len(server.ports)), strict=True))
        begun = _launch(server, programs, folder, chosen)
        try:
            _wait_ready(begun)
        except StackError as error:
            # A port that was free when it was chosen may have been taken since.
            if ports is not None or not left or "address already in use" not in str(error).lower():
                raise
        else:
            return begun
    raise AssertionError("the last try raises")


def is_free(port: int) -> bool:
    """Whether nothing on loopback listens at `port` just now."""
    with socket.socket() as one:
        # As servers do: connections of the last one that are being forgotten are in nobody's way.
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _launch(server: Server, programs: Path, folder: Path, ports: Mapping[str, int]) -> Running:
    launch = server.start(programs, folder, ports)
    with (folder / "log").open("ab") as log:
        log_before = log.tell()
        try:
            process = subprocess.Popen(
                launch.command,
                cwd=folder,
                env=os.environ | dict(launch.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A key pressed at the terminal is not meant for the servers.
                start_new_session=True,
            )
        except OSError as error:
            raise StackError(f"{server.name} cannot be started: {error}") from error
    owner = record(folder, pid=process.pid, ports=ports, stop_signal=launch.stop_signal)
    return Running(server, folder, programs, ports, process, owner, log_before)


def _wait_ready(begun: Running) -> None:
    """Return when the server is ready; else end it and raise `StackError` with the end of its log."""
    deadline = time.monotonic() + READY_S
    while (code := begun.process.poll()) is None and time.monotonic() < deadline:
        if begun.server.ready(begun.ports):
            return
        time.sleep(_POLL_S)
    begun.kill()
    why = f"was not ready after {READY_S:.0f} s" if code is None else f"ended with status {code} before it was ready"
    tail = "\n".join(begun.log().splitlines()[-_LOG_TAIL_LINES:])
    raise StackError(f"{begun.server.name} {begun.server.version} {why}; the end of {begun.folder / 'log'}:\n{tail}")
