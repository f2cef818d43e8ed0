"""Ports for the services of one control plane."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path

from distroml.cli.errors import UsageError

HOST = "127.0.0.1"
DASHBOARD_PORT = 8400
# Below are ports that are promised to well-known servers.
_LOWEST = 10_000
_ENOUGH = 2_000
_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """`count` different loopback ports that nobody listens on now.

    Where the kernel leaves enough of them, they are such as it gives to nobody who did not ask for a number: a server
    that is away for a moment finds its own free when it is back, whatever connections were made meanwhile.
    """
    kept = range(_LOWEST, _given_from())
    # Not of the process's own generator, which tests seed alike: they would all try the same ones.
    candidates = random.SystemRandom().sample(kept, _ENOUGH) if len(kept) >= _ENOUGH else []
    found: list[int] = []
    with ExitStack() as held:
        for port in [*candidates, *[0] * count]:
            if len(found) == count:
                break
            try:
                found.append(held.enter_context(socket.create_server((HOST, port))).getsockname()[1])
            except OSError:
                continue
    return found


def _given_from() -> int:
    """The first port that the kernel gives to whoever asks for any (ip(7), ip_local_port_range)."""
    try:
        return int(_GIVEN.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def is_free(port: int) -> bool:
    """Whether a server could listen on the loopback port now."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def dashboard_port(asked: int | None) -> int:
    """The port asked for, else 8400 or the next free one above; of control planes that begin together, no two get one.

    Raises:
        UsageError: the port that was asked for is in use.
    """
    if asked is not None:
        if not is_free(asked):
            raise UsageError(f"port {asked} is in use", hint="give another one with --dashboard-port")
        return asked
    return next(port for port in range(DASHBOARD_PORT, 65536) if is_free(port) and _promised(port))


# Each for as long as this process lives.
_promises: list[socket.socket] = []


def _promised(port: int) -> bool:
    """Whether no other control plane has chosen the port, whose telemetry may be far from listening at it.

    Told by a name that the kernel knows while a process holds it (unix(7), abstract), in the network that ports are of.
    """
    promise = socket.socket(socket.AF_UNIX)
    try:
        promise.bind(f"\0distroml-dashboard-{port}")
    except OSError:
        promise.close()
        return False
    _promises.append(promise)
    return True
