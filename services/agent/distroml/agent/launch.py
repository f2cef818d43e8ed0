"""Makes a worker and becomes its holder: the one way in which processes of jobs begin.

Standard library only. The cold way runs this file by path with `python -S -E -s` and gives it a `LaunchOrder` on its
standard input; the warm way calls `launch` in a child forked from a template. Either way:

    this process ── fork ──► the worker (own session, dies with its parent)
         └── exec ──► holder.py, keeping its process id

so the small holder is the worker's parent and can wait for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
import time
from typing import Literal, TypedDict

HOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "holder.py")
EXIT_CANNOT_START = 127

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PIPE_BYTES = 1024 * 1024


class LaunchOrder(TypedDict):
    """What to start. Travels over a pipe, never over the disk: the environment may hold resolved secrets."""

    worker: str
    incarnation: int
    folder: str
    """Existing folder of this incarnation; everything about it is left there."""
    python: str
    argv: list[str]
    """The script, or `-m` and a module; then its arguments."""
    cwd: str
    env: dict[str, str]
    log_cap_bytes: int
    orphan_grace_s: float


class Identity(TypedDict):
    """Who the processes are, in `identity.json`: enough never to take a recycled process id for them."""

    worker: str
    incarnation: int
    boot_id: str
    holder_pid: int
    holder_start: int
    worker_pid: int
    worker_start: int
    started_at_ms: int


def boot_id() -> str:
    """New at each boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 where there is no such process (or only its zombie)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    # Its first thread is a zombie as soon as that has ended; the last one to end closes files and frees ports.
    return 0 if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1 else int(fields[19])


def launch(order: LaunchOrder, reply_fd: int) -> Literal["worker"]:
    """Fork the worker, say who it is on `reply_fd`, become its holder.

    Returns only in the worker, with the worker's session, standard streams, folder and environment in place; the
    caller runs the program. The calling process must be single-threaded.
    """
    started_at_ms = time.time_ns() // 1_000_000
    with contextlib.suppress(PermissionError):
        os.setsid()
    os.chdir(order["folder"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    holder = os.getpid()
    out_read, out_write = _pipe()
    err_read, err_write = _pipe()
    gate_read, gate_write = os.pipe()
    listener = _listen()
    pid = os.fork()
    if pid == 0:
        _become_worker(order, holder, (gate_read, out_write, err_write))
        return "worker"
    identity = Identity(
        worker=order["worker"],
        incarnation=order["incarnation"],
        boot_id=boot_id(),
        holder_pid=holder,
        holder_start=start_time(holder),
        worker_pid=pid,
        worker_start=start_time(pid),
        started_at_ms=started_at_ms,
    )
    with open("identity.json.tmp", "w") as file:
        json.dump(identity, file)
    os.rename("identity.json.tmp", "identity.json")
    task = {
        **identity,
        "stdout_fd": out_read,
        "stderr_fd": err_read,
        "listener_fd": listener,
        "log_cap_bytes": order["log_cap_bytes"],
        "orphan_grace_s": order["orphan_grace_s"],
    }
    os.write(reply_fd, json.dumps({"op": "started", **identity}).encode() + b"\n")
    # Only now may the worker run: whoever finds it finds its identity too.
    os.write(gate_write, b"g")
    inherited = (out_read, err_read, listener)
    _close_all_but(*inherited)
    for fd in inherited:
        os.set_inheritable(fd, True)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.execv(sys.executable, [sys.executable, "-S", "-E", "-s", HOLDER, json.dumps(task)])


def _become_worker(order: LaunchOrder, holder: int, fds: tuple[int, int, int]) -> None:
    gate, out, err = fds
    os.setsid()
    die_with_parent()
    if os.getppid() != holder:
        # The holder was gone before the parent-death signal was armed.
        os._exit(EXIT_CANNOT_START)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    if os.read(gate, 1) != b"g":
        os._exit(EXIT_CANNOT_START)
    _close_all_but()
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is not None:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_DFL)
    try:
        os.chdir(order["cwd"])
    except OSError as error:
        cannot_start(f"cannot enter the working folder {order['cwd']}: {error.strerror}")


def cannot_start(why: str) -> None:
    """Say on the worker's own stderr why it never ran, and end it."""
    os.write(2, f"distroml: the worker could not be started: {why}\n".encode())
    os._exit(EXIT_CANNOT_START)


def _listen() -> int:
    """The holder's socket in the current folder; a relative name has no length limit to meet."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind("holder.sock")
    finally:
        os.umask(before)
    listener.listen(4)
    return listener.detach()


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    with contextlib.suppress(OSError):
        # Room for a burst of output while the holder waits for its turn on a busy machine.
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return read, write


def _close_all_but(*keep: int) -> None:
    first = 3
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, 1 << 20)


def die_with_parent() -> None:
    """SIGKILL to this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    """Start a worker the cold way."""
    order: LaunchOrder = json.loads(sys.stdin.buffer.read())
    reply = os.dup(1)
    launch(order, reply)
    try:
        os.execve(order["python"], [order["python"], *order["argv"]], order["env"])
    except OSError as error:
        cannot_start(f"cannot run {order['python']}: {error.strerror}")


if __name__ == "__main__":
    main()
