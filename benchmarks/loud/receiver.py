"""Stands where Elasticsearch would be, on another machine: takes every bulk request, counts, and keeps nothing.

`receiver.py` says its address, and what it was sent once its input ends.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """Takes connections in threads."""

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle of something is nothing to tell of."""


class Receiver:
    """A server on a free port of loopback; `bytes` and `documents` are what it was sent."""

    def __init__(self) -> None:
        self.bytes = self.documents = 0
        counts = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/":
                    self._answer(200, {"version": {"number": "9.0.0"}})
                else:
                    self._answer(404, {"error": {"type": "resource_not_found_exception", "reason": "kept nowhere"}})

            def do_POST(self) -> None:
                self.do_PUT()

            def do_PUT(self) -> None:
                data = self._read()
                if "/_bulk" in self.path:
                    counts.bytes += len(data)
                    counts.documents += data.count(b"\n") // 2
                    self._answer(200, {"errors": False})
                elif "/_index_template/" in self.path:
                    self._answer(200, {"acknowledged": True})
                else:
                    self._answer(404, {"error": {"type": "index_not_found_exception", "reason": "kept nowhere"}})

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

            def _read(self) -> bytes:
                return self.rfile.read(int(self.headers.get("content-length", 0)))

            def _answer(self, status: int, body: object) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("X-Elastic-Product", "Elasticsearch")
                self.send_header("content-type", "application/vnd.elasticsearch+json;compatible-with=9")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """For `DISTROML_ELASTICSEARCH`."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"


def main() -> None:
    receiver = Receiver()
    print(receiver.url, flush=True)
    sys.stdin.read()
    print(json.dumps({"bytes": receiver.bytes, "documents": receiver.documents}), flush=True)


if __name__ == "__main__":
    main()
