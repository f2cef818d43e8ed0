"""Questions that a server's `ready` asks; an answer comes within a second, and trouble is a no."""

from __future__ import annotations

import http.client
import socket

_PATIENCE_S = 1.0


def answers_http(port: int, path: str, *, statuses: tuple[int, ...] = (200,)) -> bool:
    """Whether loopback answers a GET of `path` with one of `statuses`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status in statuses
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def accepts(port: int) -> bool:
    """Whether something on loopback accepts connections at `port`."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S).close()
    except OSError:
        return False
    return True
