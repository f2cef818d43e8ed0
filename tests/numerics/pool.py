"""A warm pool of rank processes: torch is imported once, forked, and used for any number of worlds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_START_S = 300.0
# Where packages are that are not installed.
_PATH = [path for path in [os.environ.get("PYTHONPATH")] if path]


class RankFailed(AssertionError):
    """A rank's task raised, or did not end in time; the message has its trace."""


class Pool:
    """`size` processes. `run` lets the first of them do a named function in a fresh world of their own.

    A world that failed is not trusted any more: its processes are ended and replaced before the next one.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._folder = tempfile.TemporaryDirectory(prefix="numerics-")
        self._worlds = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ends: list[socket.socket] = []

    def run(self, function: str, /, world_size: int, timeout_s: float = 110.0, **arguments: Any) -> list[Any]:
        """Each rank's result of `module:function(**arguments)`, by rank.

        Args:
            function: what to call; in a process group of `world_size` ranks over Gloo where that is above 1.
            world_size: how many of the pool take part.
            timeout_s: for all of them together.
            arguments: of kinds that JSON knows; so must the result be.

        Raises:
            RankFailed: with the traces of all ranks that raised.
        """
        if self._process is None:
            self._start()
        self._worlds += 1
        Path(self._folder.name).mkdir(exist_ok=True)
        task = {
            "function": function,
            "arguments": arguments,
            "world_size": world_size,
            "store": f"{self._folder.name}/store-{self._worlds}",
        }
        answers: list[dict[str, Any]] = []
        for rank, end in enumerate(self._ends[:world_size]):
            end.sendall((json.dumps({**task, "rank": rank}) + "\n").encode())
        for rank in range(world_size):
            answer = self._answer(rank, timeout_s)
            answers.append(answer)
            if "silent" in answer:
                break
        if all("result" in answer for answer in answers):
            return [answer["result"] for answer in answers]
        self.close()
        told = "\n".join(
            f"rank {rank}: {answer.get('trace') or answer.get('silent')}"
            for rank, answer in enumerate(answers)
            if "result" not in answer
        )
        raise RankFailed(f"{function}({arguments}) with {world_size} ranks\n{told}")

    def close(self) -> None:
        """End all processes."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
        for end in self._ends:
            end.close()
        self._process, self._ends = None, []
        self._folder.cleanup()

    def _start(self) -> None:
        pairs = [socket.socketpair() for _ in range(self._size)]
        theirs = [end.fileno() for _, end in pairs]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.numerics.rank", *map(str, theirs)],
            cwd=ROOT,
            pass_fds=theirs,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *_PATH])},
            # Not a session of its own: to the scheduler it would be a user of its own, however nice its tests are.
            process_group=0,
        )
        self._ends = [end for end, _ in pairs]
        for _, end in pairs:
            end.close()
        for rank in range(self._size):
            ready = self._answer(rank, _START_S)
            if "result" not in ready:
                raise RankFailed(f"the pool did not start: {ready}")

    def _answer(self, rank: int, timeout_s: float) -> dict[str, Any]:
        end = self._ends[rank]
        end.settimeout(timeout_s)
        text = b""
        try:
            while not text.endswith(b"\n"):
                more = end.recv(1 << 16)
                if not more:
                    return {"silent": "its process ended"}
                text += more
        except TimeoutError:
            return {"silent": f"no answer within {timeout_s:.0f} s"}
        return json.loads(text)
