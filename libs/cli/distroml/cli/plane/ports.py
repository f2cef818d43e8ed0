"""Ports for the services of one control plane."""

from __future__ import annotations

import socket

from distroml.cli.errors import UsageError

HOST = "127.0.0.1"
DASHBOARD_PORT = 8400


def free_ports(count: int, avoid: frozenset[int] = frozenset()) -> list[int]:
    """`count` different loopback ports that nobody listens on now."""
    held: list[socket.socket] = []
    try:
        while len(held) < count:
            probe = socket.create_server((HOST, 0))
            held.append(probe)
        ports = [probe.getsockname()[1] for probe in held]
    finally:
        for probe in held:
            probe.close()
    return [port for port in ports if port not in avoid]


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
