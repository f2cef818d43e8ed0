"""The store host's socket: its answers, and that nobody who is silent or talks nonsense keeps them from others."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from services.agent.tests.plane import until

SERVE = """
from distroml.agent.storehost import MOST_SILENT, listen, serve
print(MOST_SILENT, flush=True)
serve(listen(), lambda number: 40_000 + number)
"""


async def test_who_is_silent_or_talks_nonsense_keeps_nobody_from_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "store.sock"
    with ExitStack() as open_ones:
        host = subprocess.Popen([sys.executable, "-c", SERVE], cwd=tmp_path, stdout=subprocess.PIPE)
        open_ones.callback(lambda: (host.kill(), host.communicate()))
        assert host.stdout is not None
        most = int(host.stdout.readline())
        await until(path.is_socket)

        def connected() -> socket.socket:
            link = open_ones.enter_context(socket.socket(socket.AF_UNIX))
            link.connect(str(path))
            # Much more than an answer takes.
            link.settimeout(30)
            return link

        assert path.stat().st_mode & 0o777 == 0o600
        silent = [connected() for _ in range(most)]
        half = connected()
        half.sendall(b"1")
        for garbage in (b"x\n", b"\xff" * 64, b"\n", b"1 2\n"):
            link = connected()
            link.sendall(garbage)
            assert link.recv(100) == b"", garbage
        for number in (7, 7, 8):
            link = connected()
            link.sendall(b"%d\n" % number)
            assert link.makefile("rb").read() == b"%d\n" % (40_000 + number)
        half.sendall(b"2\n")
        assert half.makefile("rb").read() == b"40012\n"
        # The oldest had to make room for those that spoke; the newest of the silent are still there.
        assert silent[0].recv(100) == b""
        silent[-1].sendall(b"9\n")
        assert silent[-1].recv(100) == b"40009\n"
        assert host.poll() is None
