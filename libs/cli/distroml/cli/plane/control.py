"""Start and end a control plane from the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from distroml.cli.errors import CliError, Unreachable, UsageError
from distroml.cli.plane import leftovers
from distroml.cli.plane.datafolder import DataFolder, Endpoints, Profile
from distroml.cli.plane.failure import told_failure
from distroml.cli.plane.profile import check

START_TIMEOUT_S = 150.0
STOP_TIMEOUT_S = 60.0
# Supervisors that this process started: they outlive it, and are reaped if they end before it does.
_children: list[subprocess.Popen[bytes]] = []


def running(folder: DataFolder) -> Endpoints | None:
    """The endpoints of the control plane on this folder, or None where none runs."""
    endpoints = folder.endpoints()
    return endpoints if endpoints is not None and folder.is_locked() else None


def start(
    folder: DataFolder,
    *,
    slots: int | None = None,
    dashboard_port: int | None = None,
    profile: Profile | None = None,
    on_wait: Callable[[float], None] = lambda _: None,
) -> Endpoints:
    """Start a supervisor in the background and wait until every service is healthy.

    Raises:
        UsageError: the folder, port or profile cannot be used, or a control plane runs there already.
        CliError: a server does not serve us; or a service does not come up: the message has the end of its log.
    """
    folder.prepare(profile)
    if folder.is_locked():
        raise UsageError(
            f"a control plane runs on {folder.path}",
            hint="use it, end it with `distroml down`, or give another folder with --data",
        )
    check(folder)
    # Of a supervisor that was killed: the node, and ports at which others know them, are not free before they ended.
    leftovers.end_services(folder)
    _reap()
    command = [sys.executable, "-m", "distroml.cli.plane.supervisor", "--data", str(folder.path)]
    if slots is not None:
        command += ["--slots", str(slots)]
    if dashboard_port is not None:
        command += ["--dashboard-port", str(dashboard_port)]
    log = folder.logs / "supervisor.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    _children.append(process)
    try:
        return _until_ready(folder, process, log, on_wait)
    except BaseException:
        # Ctrl-C, too: nobody would know that it comes up.
        process.terminate()
        raise


def _until_ready(
    folder: DataFolder, process: subprocess.Popen[bytes], log: Path, on_wait: Callable[[float], None]
) -> Endpoints:
    began = time.monotonic()
    while time.monotonic() - began < START_TIMEOUT_S:
        if (endpoints := folder.endpoints()) is not None and endpoints.supervisor == process.pid:
            return endpoints
        if process.poll() is not None:
            text = log.read_text("utf-8", "replace")
            if (failure := told_failure(text)) is not None:
                raise failure
            raise CliError(f"the control plane ended while starting:\n{_indent(text[-2000:])}", hint=f"see {log}")
        on_wait(time.monotonic() - began)
        time.sleep(0.05)
    raise CliError(f"the control plane did not get ready within {START_TIMEOUT_S:.0f} s:\n{_logs(folder)}")


def stop(folder: DataFolder) -> bool:
    """End the control plane on this folder with its workers, or what is left of one; False where nothing ran.

    Raises:
        CliError: it did not end in time.
        UsageError: nobody may look, since the folder is somebody else's.
    """
    folder.check_readable()
    if not folder.is_locked():
        return _end_leftovers(folder)
    pid = _supervisor_pid(folder)
    if pid is None:
        raise CliError(
            f"{folder.path} is in use, but by no supervisor that can be found", hint=f"fuser {folder.path}/lock"
        )
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while folder.is_locked():
        if time.monotonic() > deadline:
            raise CliError(f"the control plane (process {pid}) did not end within {STOP_TIMEOUT_S:.0f} s")
        time.sleep(0.05)
    _reap(pid)
    # Nothing, unless the supervisor was killed while it ended.
    _end_leftovers(folder)
    return True


def _end_leftovers(folder: DataFolder) -> bool:
    if not folder.token_file.exists():
        return False
    lock = folder.lock()
    try:
        # In this order: an agent that is still there would start what it sees ending again.
        services = leftovers.end_services(folder)
        return bool(leftovers.end_workers(folder) + services)
    finally:
        os.close(lock)


def _reap(ended: int = 0) -> None:
    """Forget supervisors of ours that have ended; wait for the one that is known to."""
    for child in list(_children):
        if child.pid == ended:
            child.wait()
        if child.poll() is not None:
            _children.remove(child)


def connect_or_fail(folder: DataFolder) -> Endpoints:
    """The running control plane's endpoints.

    Raises:
        Unreachable: none runs.
        UsageError: nobody may look, since the folder is somebody else's.
    """
    endpoints = running(folder)
    if endpoints is None:
        folder.check_readable()
        raise Unreachable(f"no control plane runs on {folder.path}", hint="start one with `distroml up`")
    return endpoints


@contextmanager
def ephemeral(folder: DataFolder, *, slots: int | None) -> Generator[Endpoints]:
    """The running control plane, or one of our own that ends with the block."""
    if (endpoints := running(folder)) is not None:
        yield endpoints
        return
    endpoints = start(folder, slots=slots)
    try:
        yield endpoints
    finally:
        stop(folder)


def _supervisor_pid(folder: DataFolder) -> int | None:
    """The process that holds the folder's lock; the kernel knows even while services still start."""
    inode = (folder.path / "lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
            return int(fields[4])
    endpoints = folder.endpoints()
    return endpoints.supervisor if endpoints else None


def _indent(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())


def _logs(folder: DataFolder) -> str:
    parts: list[str] = []
    for file in sorted(folder.logs.glob("*.log")):
        lines = file.read_text("utf-8", "replace").splitlines()[-5:]
        parts += [f"  {file.name}:", *("    " + line[:300] for line in lines)]
    return "\n".join(parts)
