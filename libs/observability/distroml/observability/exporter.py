"""A very small HTTP server for `/metrics` and `/healthz`, on the service's own event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from distroml.observability.logs import logger

log = logger(__name__)

_READ_TIMEOUT_S: Final = 5.0
_MAX_HEAD_BYTES: Final = 8 * 1024
_MAX_CONNECTIONS: Final = 32

Health = Callable[[], tuple[bool, object]]
"""Whether the service serves, and what it has to say about its parts (anything JSON can hold)."""


class Exporter:
    """Answers GET `/metrics` and `/healthz`, one request per connection; anything else is refused at once."""

    def __init__(self, registry: CollectorRegistry, health: Health) -> None:
        self._registry, self._health = registry, health
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port (a free one for port 0).

        Raises:
            OSError: the port cannot be had.
        """
        self._server = await asyncio.start_server(self._connected, host, port, limit=_MAX_HEAD_BYTES)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= _MAX_CONNECTIONS:
                async with asyncio.timeout(_READ_TIMEOUT_S):
                    writer.write(self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # Not HTTP, or nobody there any more: there is nobody to tell.
            pass
        except Exception:
            log.exception("the metrics page failed")
        finally:
            self._connections -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD are answered here\n")
        if path == b"/metrics":
            return _response(HTTPStatus.OK, generate_latest(self._registry), CONTENT_TYPE_LATEST, method)
        if path == b"/healthz":
            serving, body = self._health()
            status = HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE
            return _response(status, msgspec.json.encode(body), "application/json", method)
        return _response(HTTPStatus.NOT_FOUND, b"there are /metrics and /healthz\n")


def _response(
    status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8", method: bytes = b"GET"
) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if method == b"HEAD" else body)
