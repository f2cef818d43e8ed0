"""Servers on loopback that answer what a test says, and one that stands between a client and a real server."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Answer:
    """What to say. `None` as a status closes the connection without a word; `sent` cuts the body short."""

    status: int | None = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None


@contextmanager
def answering(answer: Callable[[Request], Answer]) -> Iterator[str]:
    """An HTTP server that answers each request with what the function returns; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self):
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said = answer(Request(self.command, self.path, dict(self.headers.items()), body))
            if said.status is None:
                self.close_connection = True
                return
            self.send_response_only(said.status)
            headers = {"Content-Length": str(len(said.body)), "Date": self.date_time_string()} | said.headers
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said.body if said.sent is None else said.body[: said.sent])
            if said.sent is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, client_address: None  # a client may hang up whenever it likes
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


Forward = Callable[[Request], Answer]


@contextmanager
def between(port: int, trouble: Callable[[Request, Forward], Answer]) -> Iterator[str]:
    """A server that lets `trouble` decide what becomes of each request, perhaps to forward it to the one at `port`."""

    def forward(request: Request) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(request.body)
            got = connection.getresponse()
            body = got.read()
            headers = {
                n.title(): v for n, v in got.getheaders() if n.lower() not in ("transfer-encoding", "connection")
            }
            return Answer(got.status, body, headers)
        finally:
            connection.close()

    with answering(lambda request: trouble(request, forward)) as url:
        yield url


@contextmanager
def greeting(words: bytes) -> Iterator[str]:
    """A server of another protocol: it says `words` to whoever comes, and hangs up after their first word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.sendall(words)
                    client.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
