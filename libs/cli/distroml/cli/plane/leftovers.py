"""What a supervisor that was killed leaves behind: services, which end by themselves, and workers, which train on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from distroml.cli.errors import CliError
from distroml.cli.plane.datafolder import DataFolder
from distroml.rpc.servers import PREFIXES

STOP_S = 20.0
"""How long a service may take to end, and the agent's command to end what runs on the node."""


def end_services(folder: DataFolder) -> int:
    """End the services that the folder's last supervisor started and that it did not end; how many there were.

    The caller knows that no supervisor is left.
    """
    found = left = _services(folder)
    # They were told to end when it died; one that is stopped does not see that before it goes on.
    for numbers in ((signal.SIGTERM, signal.SIGCONT), (signal.SIGKILL,)):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                for number in numbers:
                    os.kill(pid, number)
        deadline = time.monotonic() + STOP_S
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = _services(folder)
    return len(found)


def holders(folder: DataFolder) -> list[int]:
    """Processes that hold a worker of this folder's node, or a store for its workers."""
    workers = f"{folder.path.resolve() / 'node' / 'workers'}/"
    found: list[int] = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            holds = any(word.endswith("/agent/holder.py") for word in _words(pid, "cmdline"))
            if holds and os.readlink(f"/proc/{pid}/cwd").startswith(workers):
                found.append(pid)
    return found


def end_workers(folder: DataFolder) -> int:
    """End all that runs on the folder's node, by the agent's own command; how many processes were held.

    Raises:
        CliError: some may be left.
    """
    found = holders(folder)
    if found:
        # It needs no server, and what names some may be wrong.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
        done = subprocess.run(
            [sys.executable, "-m", "distroml.agent", "--end-workers"],
            env={**environ, "DISTROML_DATA": str(folder.path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CliError(
                f"workers may be left, the agent's command to end them failed:\n{done.stderr[-1000:]}",
                hint=f"look at processes {' '.join(map(str, found))}",
            )
    return len(found)


def _services(folder: DataFolder) -> list[int]:
    """Known by the folder and the address that only they were given."""
    endpoints = folder.endpoints()
    if endpoints is None:
        return []
    addresses = {f"distroml.{name}": address for name, address in endpoints.services.items()}
    found: list[int] = []
    for pid in _pids():
        # Of those that end meanwhile, and of other users', nothing is read.
        with contextlib.suppress(OSError):
            module = next((word for word in _words(pid, "cmdline") if word in addresses), "")
            if module and _was_given(pid, addresses[module], folder):
                found.append(pid)
    return found


def _was_given(pid: int, address: str, folder: DataFolder) -> bool:
    pairs = (word.partition("=") for word in _words(pid, "environ"))
    given = {name: value for name, _, value in pairs}
    data = given.get("DISTROML_DATA", "")
    return given.get("DISTROML_LISTEN") == address and Path(data).resolve() == folder.path.resolve()


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _words(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace").split("\0")
