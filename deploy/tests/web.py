"""The smallest real server: Python's own over one folder."""

import sys

from deploy.stack import health
from deploy.stack.install import once
from deploy.stack.server import Launch


class Web:
    """`Server` that serves its folder by HTTP; `then` is run before it serves."""

    version = "1"
    ports = ("client",)

    def __init__(self, name="web", *, then="", environment=None):
        self.name = name
        self.installed = 0
        self._then = then
        self._environment = environment or {}

    def install(self, cache):
        self.installed += 1
        return once(cache, self.name, self.version, lambda folder: (folder / "program").touch())

    def start(self, programs, folder, ports):
        assert (programs / "program").exists()
        code = (
            "import functools, http.server, os, signal\n"
            f"{self._then}\n"
            "http.server.ThreadingHTTPServer(('127.0.0.1', "
            f"{ports['client']}), http.server.SimpleHTTPRequestHandler).serve_forever()"
        )
        return Launch(command=(sys.executable, "-c", code), environment=self._environment)

    def ready(self, ports):
        return health.answers_http(ports["client"], "/")

    def settings(self, ports):
        return {f"{self.name.upper()}_URL": f"http://127.0.0.1:{ports['client']}", "SECRET": "it's one"}
