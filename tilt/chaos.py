"""Breaks one part of the developer's stack: `python -m tilt.chaos worker|service NAME|server NAME|pause NAME`.

worker           kill -9 of the worker that was started last; the job goes on in the next generation
service NAME     kill -9 of that service; it is started again
server NAME      end that server in order; its resource turns red until it is started again
pause NAME       stop that server with SIGSTOP, and let it go on after 20 s
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from deploy.stack.owner import Owner, owner_of
from distroml.agent.adapters.processes import read_identity
from tilt.inside import HOME, STACK

DATA = HOME / ".distroml" / "tilt"
PAUSE_S = 20.0


class NothingToBreak(Exception):
    """What was to be broken does not run."""


def main(arguments: Sequence[str]) -> int:
    """The command line; see the module's text."""
    try:
        match list(arguments):
            case ["worker"]:
                pid = newest_worker(DATA)
                os.kill(pid, signal.SIGKILL)
                print(f"killed worker, process {pid}")
            case ["service", name]:
                pid = service(name)
                os.kill(pid, signal.SIGKILL)
                print(f"killed {name}, process {pid}")
            case ["server", name]:
                owner = server(name)
                owner.end()
                print(f"ended {name}, process {owner.pid}")
            case ["pause", name]:
                pause(server(name), PAUSE_S)
                print(f"{name} stood still for {PAUSE_S:.0f} s")
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except NothingToBreak as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def newest_worker(data: Path) -> int:
    """The process of the worker that was started last; raises `NothingToBreak`."""
    found = [
        (identity.started_at_ms, identity.worker_pid)
        for folder in data.glob("node/workers/*/*")
        if (identity := read_identity(folder)) and identity.holder_lives
    ]
    if not found:
        raise NothingToBreak("no worker runs: start the demo first")
    return max(found)[1]


def service(name: str) -> int:
    """The process of a service of this stack; raises `NothingToBreak`."""
    for process in psutil.process_iter(["cmdline"]):
        command = list[str](process.info["cmdline"] or [])
        # What starts it again has the same last words.
        if (
            command[-2:] == ["-m", f"distroml.{name}"]
            and "tilt.inside" not in command
            and _data_of(process) == str(DATA)
        ):
            return process.pid
    raise NothingToBreak(f"{name} does not run")


def server(name: str) -> Owner:
    """Who serves as this server; raises `NothingToBreak`."""
    owner = owner_of(STACK / name)
    if owner is None or not owner.alive:
        raise NothingToBreak(f"{name} does not run")
    return owner


def pause(owner: Owner, pause_s: float) -> None:
    """Let the process stand still for a while; it goes on even where this one is told to end meanwhile."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    os.kill(owner.pid, signal.SIGSTOP)
    try:
        time.sleep(pause_s)
    finally:
        if owner.alive:
            os.kill(owner.pid, signal.SIGCONT)


def _data_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("DISTROML_DATA", "")
    except psutil.Error:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
